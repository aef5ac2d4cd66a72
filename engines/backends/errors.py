"""The errors of the backend contract: what a runtime refused, with a code, and with advice for the operator."""


class BackendError(Exception):
    """The backend could not carry out the call."""

    code = "backend_error"
    advice = "The runtime refused: remove the cause that it names, then repeat the request."  # for operators
    retryable = False  # True: the worker repeats the attempt by itself


class BackendUnavailable(BackendError):
    """The runtime did not answer in time, and the state of its instances is unknown."""

    code = "backend_unavailable"
    advice = "The runtime did not answer in time, or could not work: check that it runs, has room and is not overloaded."
    retryable = True


class ImageMissing(BackendError):
    """The runtime has no image with the name in the spec."""

    code = "image_missing"
    advice = "The engines' host has no image of this name: build or pull the image there, then repeat the request."


class ImageMismatch(BackendError):
    """The runtime answered with an image that does not have the name in the spec. No instance was made of the image."""

    code = "image_mismatch"
    advice = (
        "The runtime answered with an image of another name, and no engine was made of it: check which names the image has on the"
        " engines' host, then repeat the request."
    )


class PortTaken(BackendError):
    """Another process uses the instance's port. The caller picks the next port, then calls `create` and `start` again."""

    code = "port_taken"
    advice = "Something else uses the engine's port: choose a free range (ORCH_PORT_MIN, ORCH_PORT_MAX), then repeat the request."


class InstanceMissing(BackendError):
    """The instance to start was never created, or somebody removed it since. The next attempt creates the instance again."""

    code = "instance_missing"
    advice = "Something removed the engine's instance before it was started: find out what, then repeat the request."
    retryable = True


class InstanceDiffers(BackendError):
    """The instance is not made of what the engine should be made of. The next attempt makes the instance anew."""

    code = "instance_differs"
    advice = "The engine's instance is not made of what it should be made of, and could not be made anew: repeat the request."
    retryable = True


class OtherRuns(BackendError):
    """Another instance of the engine runs on its volume, and only one may."""

    code = "other_runs"
    advice = "Another instance of the engine runs on its volume, and only one may: stop that instance, then repeat the request."


class NetworkFull(BackendError):
    """No network has a free address, and the runtime cannot add a network."""

    code = "network_full"
    advice = "No network has a free address: give the runtime more or larger address pools."


class NetworkUnguarded(BackendError):
    """No instance starts, because the network guard, which keeps engines apart, is not in force."""

    code = "network_unguarded"
    advice = (
        "No engine starts, because the guard that keeps engines apart is not in force: check that the guard's image exists and"
        " that the guard's container runs."
    )


class RuntimeMissing(BackendError):
    """The host lacks the container runtime of the spec, and no other container runtime stands in."""

    code = "runtime_missing"
    advice = (
        "The engines' host lacks the container runtime in which the engine has to run: add it to the configuration of the host's"
        " daemon, or choose another in the product's policy."
    )


class DiskFull(BackendError):
    """The runtime's disk is full."""

    code = "disk_full"
    advice = "The disk of the engines' host is full: free space there, then repeat the request."


class QuotaMissing(BackendError):
    """The disk of the engines' host has no project quotas."""

    code = "quota_missing"
    advice = "The disk of the engines' host has no project quotas: mount it as XFS with pquota, or unset ORCH_ENGINE_DISK_QUOTA."


class ImageUnfit(BackendError):
    """The image declares volumes that an engine cannot have, or labels or a command of many thousand characters."""

    code = "image_unfit"
    advice = (
        "The image declares volumes that an engine cannot have, or labels or a command of many thousand characters: build the"
        " image without them; engines keep their data in /data."
    )
