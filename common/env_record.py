"""The settings of the audit log: how long its rows are kept. A part of `common.env.Env`."""

from pydantic import Field
from pydantic_settings import BaseSettings


class RecordEnv(BaseSettings):
    """The `ORCH_AUDIT_*` variables."""

    audit_retention_days: int = Field(
        365,
        ge=1,
        description="Age, in days, after which a month of rows leaves `audit_log`; with the rows go destroyed engines without a"
        " row, and operations that have ended.",
    )
    audit_probe_retention_days: int = Field(
        14, ge=1, description="Age, in days, after which rows of health probes leave `audit_log`."
    )
    audit_retention_floor_days: int = Field(
        183,
        ge=1,
        description="The least that `ORCH_AUDIT_RETENTION_DAYS` may be, by law or contract: a slip must not remove the record."
        " Rows of probes have no floor.",
    )

    def check_record(self) -> None:
        """Raise ValueError for a time that is shorter than the deployment allows."""
        if self.audit_retention_days < self.audit_retention_floor_days:
            raise ValueError(
                f"ORCH_AUDIT_RETENTION_DAYS={self.audit_retention_days} is below the floor of {self.audit_retention_floor_days}"
                " days: rows would be lost for good. If that is meant, lower ORCH_AUDIT_RETENTION_FLOOR_DAYS, too"
            )
