"""What a trainer does on the network beside its own rounds: it helps joiners to the group's state."""

from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.rounds.catch_up_messages import serve_catch_up
from shoal.swarm.transfer.block_transfer_donor import DEFAULT_RATE_BYTE_S, BlockDonor

from .worker_keeper import RunKeeper

DONOR_SHARE = 0.25  # of a limited uplink, so that a joiner does not hold up the rounds


async def serve_joiners(calls: MemberCalls, keeper: RunKeeper, upload_bit_s: float | None = None) -> BlockDonor:
    """Offer the checkpoints and outcomes of this run, and give their blocks away."""
    rate = DEFAULT_RATE_BYTE_S if upload_bit_s is None else upload_bit_s / 8 * DONOR_SHARE
    donor = BlockDonor((keeper.store, keeper.log), rate)
    await donor.serve(calls)
    await serve_catch_up(calls, keeper.place.run, keeper.standing, keeper.checkpoints, keeper.log)
    return donor
