"""The bodies of requests about engines and products."""

from common.bodies import Body, Flag, Text
from policy import products


class Provision(Body):
    user_id = Text(max_length=255)
    engine_version = Text(default="", max_length=255)


class Admit(Body):
    auto_provision = Flag(default=False)
    auto_wake = Flag(default=False)


class NewSuspension(Body):
    reason = Text(max_length=products.MAX_REASON)
    stop_engines = Flag(default=False)


class Resumption(Body):
    reason = Text(max_length=products.MAX_REASON)


class Nothing(Body):
    pass
