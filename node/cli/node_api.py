"""The running node of this home, asked over its HTTP API.

Built on http.client, because `shoal status` should not wait for a larger HTTP library to be imported.
"""

import http.client
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import msgspec

from shoal.swarm.errors import Refused, SwarmUnreachable, Unavailable
from shoal.swarm.home import Home
from shoal.swarm.node_lock import CLIENT_NAME, running

TIMEOUT_S = 10.0
PREFIX = "/shoal/v1"
_NO_NODE = "no node is running here; start one with `shoal up`"


class NodeApi:
    """home: of the node; raises SwarmUnreachable when none runs there"""

    def __init__(self, home: Home, timeout_s: float = TIMEOUT_S) -> None:
        self.home = home
        self._timeout_s = timeout_s
        live = running(home.lock)
        facts = home.facts_of(live[0]) if live else None
        if live is None or (facts is None and live[1] == CLIENT_NAME):
            raise SwarmUnreachable(_NO_NODE)
        if facts is None or not facts.api:
            state = "still starting; try again in some seconds" if facts is None else "stopping"
            raise SwarmUnreachable(f"node {live[1]} (pid {live[0]}) is {state}")
        self.facts = facts
        self._key = home.api_key()

    @classmethod
    def of(cls, folder: Path | None, timeout_s: float = TIMEOUT_S) -> Self:
        """folder: what --home says"""
        return cls(Home.find(folder), timeout_s)

    def get(self, path: str) -> Any:  # noqa: ANN401  JSON
        return self.ask("GET", path)

    def ask(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  JSON
        """The decoded answer. path: below /shoal/v1

        raises: what the node refused, as the same error; SwarmUnreachable when it does not answer
        """
        address = urlsplit(self.facts.api)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=self._timeout_s)
        content = None if body is None else msgspec.json.encode(body)
        headers = {"authorization": f"Bearer {self._key}", "content-type": "application/json"}
        try:
            connection.request(method, PREFIX + path, content, headers)
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            where = f"node {self.facts.name} (pid {self.facts.pid}) at {self.facts.api}"
            raise SwarmUnreachable(f"{where} does not answer ({error}); see {self.home.logs}/node.log") from error
        finally:
            connection.close()
        if not 200 <= answer.status < 300:
            raise failure_of(answer.status, data, self.home)
        try:
            return msgspec.json.decode(data)
        except msgspec.DecodeError as error:
            raise Unavailable(f"what answers at {self.facts.api} is not a node of shoal") from error


def running_api(home: Home) -> NodeApi | None:
    """The node of this home; None when none runs.

    raises: SwarmUnreachable when it is still starting; Refused when a client without a node uses the home
    """
    live = running(home.lock)
    if live is None:
        return None
    if live[1] == CLIENT_NAME and home.facts_of(live[0]) is None:
        raise Refused(
            f"another shoal command (pid {live[0]}) uses this home without a node; "
            "wait for it, run `shoal up`, or use another --home"
        )
    return NodeApi(home)


def segment(text: str) -> str:
    """A name or id as one part of a path."""
    return quote(text, safe="")


def failure_of(status: int, data: bytes, home: Home) -> Exception:
    """The error that a node refused with."""
    from shoal.swarm.client.error_codes import error_of

    code: str | None = None
    message = f"the node answered with status {status}"
    try:
        told = msgspec.json.decode(data)["error"]
        code, message = told["code"], told["message"]
    except (msgspec.DecodeError, KeyError, TypeError):
        pass
    if status == 401:
        return Refused(
            f"the running node has another API key than {home.api_key_file}; restart it with `shoal down`, `shoal up`"
        )
    return error_of(status, code, message)
