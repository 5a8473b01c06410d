"""Text as the terminal gave it: is it any?"""


def is_text(given: str) -> bool:
    """Python passes bytes that are not UTF-8 on as lone surrogates, in arguments and, with some locales, on stdin."""
    return not any("\ud800" <= character <= "\udfff" for character in given)
