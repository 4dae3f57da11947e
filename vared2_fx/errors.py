"""What can go wrong, as exceptions that say what happened, where, and what to do."""


class Vared2Error(ValueError):
    """Base of every error that this package raises for something its user can mend.

    The command line prints its text without a traceback.
    """


class ConvertError(Vared2Error):
    """A network, or a choice of layers in it, cannot be converted as asked."""


class CheckpointError(Vared2Error):
    """A saved network cannot be read, or does not fit the network it is loaded into."""


class DataError(Vared2Error):
    """Videos, labels or their listing cannot be used."""


class ZooError(Vared2Error):
    """A network of the zoo is unknown, or its weights cannot be had."""


class TrainError(Vared2Error):
    """Fine-tuning cannot go on."""


class ReportError(Vared2Error):
    """A report cannot be made from this data, or read."""


class DeployError(Vared2Error):
    """A network cannot be deployed as asked, or a deployed one is not read, or called, as it can be."""
