"""Why a folder in SafeTensors cannot become a GGUF: the error that all parts of the conversion raise."""


class Unconvertible(ValueError):
    """Why a folder cannot be converted, in words for a person."""
