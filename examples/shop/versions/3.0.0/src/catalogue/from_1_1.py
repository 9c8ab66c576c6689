"""Clients of 1.x and code of 2.0: `price`, text such as "4.50", is `cents`, a number."""

from gati_core import VersionedRequest, VersionedResponse


class PriceToCents:
    """Published once, it never changes: later versions bring the same file."""

    @staticmethod
    def forward_request(request: VersionedRequest) -> None:
        """An old client sends an article."""
        if request.body is not None:
            euros, cents = request.body.pop("price").split(".")
            request.body["cents"] = int(euros) * 100 + int(cents)

    @staticmethod
    def backward_response(response: VersionedResponse) -> None:
        """An old client gets an article."""
        cents = response.body.pop("cents")
        response.body["price"] = f"{cents // 100}.{cents % 100:02d}"

    @staticmethod
    def backward_request(request: VersionedRequest) -> None:
        """A new client sends an article to the old code."""
        if request.body is not None:
            cents = request.body.pop("cents")
            request.body["price"] = f"{cents // 100}.{cents % 100:02d}"
