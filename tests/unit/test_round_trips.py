"""`check_round_trip` finds what is lost between two versions, and passes what is not."""

from __future__ import annotations

import msgspec
import pytest

from gati_core import VersionedRequest, VersionedResponse
from gati_testing import check_round_trip


class Old(msgspec.Struct):
    sku: str
    name: str


class New(msgspec.Struct):
    sku: str
    title: str


class Renamed:
    @staticmethod
    def forward_request(request: VersionedRequest) -> None:
        request.body["title"] = request.body.pop("name")

    @staticmethod
    async def backward_request(request: VersionedRequest) -> None:
        request.body["name"] = request.body.pop("title")

    @staticmethod
    def backward_response(response: VersionedResponse) -> VersionedResponse:
        return VersionedResponse(response.status, {"sku": response.body["sku"], "name": response.body["title"]})


def test_a_rename_in_both_directions_holds() -> None:
    check_round_trip(Renamed, old_request=Old, new_request=New, old_response=Old, new_response=New)


def test_what_does_not_fit_the_new_type_is_shown_with_its_place() -> None:
    class Forgets:
        @staticmethod
        def forward_request(request: VersionedRequest) -> None:
            del request.body["name"]

    with pytest.raises(AssertionError, match=r"Forgets\.forward_request made .* which does not fit: /title"):
        check_round_trip(Forgets, old_request=Old, new_request=New)


def test_what_is_lost_on_the_way_is_shown_with_both_functions() -> None:
    class Lossy(Renamed):
        @staticmethod
        def backward_request(request: VersionedRequest) -> None:
            request.body["name"] = request.body.pop("title")[:3]

    with pytest.raises(AssertionError, match=r"came back as .* with .*Lossy\.backward_request"):
        check_round_trip(Lossy, old_request=Old, new_request=New)
    check_round_trip(
        Lossy, old_request=Old, new_request=New, same=lambda left, came: left["name"].startswith(came["name"])
    )


def test_a_transformer_without_functions_for_a_change_is_found() -> None:
    class OnlyAnswers:
        @staticmethod
        def backward_response(response: VersionedResponse) -> None:
            response.body["name"] = response.body.pop("title")

    check_round_trip(OnlyAnswers, old_response=Old, new_response=New)
    with pytest.raises(AssertionError, match="does not fit"):
        check_round_trip(OnlyAnswers, old_request=Old, new_request=New)


def test_half_a_pair_of_types_is_refused() -> None:
    with pytest.raises(TypeError, match="both types"):
        check_round_trip(Renamed, old_request=Old)
    with pytest.raises(TypeError, match="both types"):
        check_round_trip(Renamed)
