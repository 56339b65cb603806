"""Silence the progress bars and notices of the libraries below: a command shows its own."""

import os


def quiet() -> None:
    """Only errors of diffusers and transformers reach the terminal, from this process and from those it starts."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
