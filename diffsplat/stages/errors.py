"""Errors of the stages that a client sees with their own text; needs neither torch nor numpy."""


class NotFiniteError(RuntimeError):
    """A network's numbers left the range of its precision; the message names step, graph and precision."""
