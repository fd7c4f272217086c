"""Which of our extras brings a backend, and what is said where it is missing. Imports neither Keras nor a backend."""

_EXTRAS = {"tensorflow": "tf", "jax": "jax", "torch": "torch"}


def what_to_install(missing: ModuleNotFoundError, *, wanted_by: str) -> str:
    """The advice for a backend that is not installed, `""` where another module is missing.

    Args:
        missing: what the import raised.
        wanted_by: the name that somebody asked for.
    """
    backend = (missing.name or "").split(".")[0]
    if backend not in _EXTRAS:
        return ""
    return (
        f"`{wanted_by}` needs the Keras backend {backend}, which is not installed. Run `pip install "
        f"'smolite[{_EXTRAS[backend]}]'`, or set the environment variable KERAS_BACKEND to the backend "
        f"that you have: {', '.join(list(_EXTRAS)[:-1])} or {list(_EXTRAS)[-1]}."
    )
