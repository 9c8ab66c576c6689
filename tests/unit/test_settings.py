"""Settings come from the environment, all of them checked, or the process does not start."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from gati_core.errors import SettingsError
from gati_core.settings import FabricSettings, fabric_from_env, from_env


class _Sample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    max_in_flight: Annotated[int, Meta(ge=1, le=10)] = 4
    grace_s: Annotated[float, Meta(ge=0)] = 1.0
    lease_s: float = 2.0

    def __post_init__(self) -> None:
        if self.grace_s >= self.lease_s:
            raise ValueError("grace_s must stay below lease_s")


def test_without_variables_the_defaults_hold() -> None:
    assert from_env(_Sample, "GATI_X_", {}) == _Sample()


def test_variables_are_converted_to_the_fields_types() -> None:
    found = from_env(_Sample, "GATI_X_", {"GATI_X_MAX_IN_FLIGHT": "7", "GATI_X_GRACE_S": "0.5", "HOME": "/x"})

    assert found == _Sample(max_in_flight=7, grace_s=0.5)


def test_an_unknown_variable_is_an_error_that_names_it_and_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"GATI_X_MAX_INFLIGHT is not a setting; .*GATI_X_MAX_IN_FLIGHT"):
        from_env(_Sample, "GATI_X_", {"GATI_X_MAX_INFLIGHT": "7"})


@pytest.mark.parametrize("value", ["0", "11", "many", "", "1.5"])
def test_a_value_that_does_not_fit_is_an_error_that_names_the_field(value: str) -> None:
    with pytest.raises(SettingsError, match=r"GATI_X_\*: .*max_in_flight"):
        from_env(_Sample, "GATI_X_", {"GATI_X_MAX_IN_FLIGHT": value})


def test_settings_that_contradict_each_other_are_an_error() -> None:
    with pytest.raises(SettingsError, match="grace_s must stay below lease_s"):
        from_env(_Sample, "GATI_X_", {"GATI_X_GRACE_S": "3"})


def test_fabric_settings_read_the_two_names_that_all_services_share() -> None:
    found = fabric_from_env(
        {"GATI_NATS_URL": "nats://broker:4222", "GATI_NAMESPACE": "blue", "GATI_FABRIC_PUBLISH_WINDOW": "16"}
    )

    assert (found.nats_url, found.namespace, found.publish_window) == ("nats://broker:4222", "blue", 16)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GATI_NAMESPACE", "Gati"),
        ("GATI_NAMESPACE", "a.b"),
        ("GATI_NAMESPACE", ""),
        ("GATI_NAMESPACE", "a" * 33),
        ("GATI_NATS_URL", ""),
        ("GATI_FABRIC_TOPOLOGY", "destroy"),
        ("GATI_FABRIC_REPLICAS", "0"),
        ("GATI_FABRIC_CLAIM_CHECK_BYTES", "1000000"),
        ("GATI_FABRIC_CLAIM_CHECK_BYTES", "1"),
        ("GATI_FABRIC_PUBLISH_WINDOW", "0"),
        ("GATI_FABRIC_PUBLISH_ACK_TIMEOUT_S", "0"),
        ("GATI_FABRIC_PUBLISH_ACK_TIMEOUT_S", "nan"),
        ("GATI_FABRIC_STALLED_AFTER_S", "-1"),
        ("GATI_FABRIC_WINDOW", "5"),
    ],
)
def test_fabric_settings_out_of_bounds_are_refused(variable: str, value: str) -> None:
    with pytest.raises(SettingsError):
        fabric_from_env({variable: value})


def test_settings_cannot_be_changed_after_the_start() -> None:
    with pytest.raises(AttributeError):
        FabricSettings().namespace = "other"  # type: ignore[misc]
