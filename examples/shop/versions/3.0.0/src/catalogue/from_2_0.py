"""Clients of 2.0 and code of 3.0: every price was in euros."""

from gati_core import VersionedRequest, VersionedResponse

_EUROS = {"EUR": 1.0, "USD": 0.9, "GBP": 1.2}


class WithCurrency:
    """Published once, it never changes: later versions bring the same file."""

    @staticmethod
    def forward_request(request: VersionedRequest) -> None:
        """An old client sends an article."""
        if request.body is not None:
            request.body["currency"] = "EUR"

    @staticmethod
    def backward_response(response: VersionedResponse) -> None:
        """An old client gets an article; it takes every price for euros, so it gets euros."""
        response.body["cents"] = round(response.body["cents"] * _EUROS[response.body.pop("currency")])

    @staticmethod
    def backward_request(request: VersionedRequest) -> None:
        """A new client sends an article to the old code."""
        if request.body is not None:
            request.body["cents"] = round(request.body["cents"] * _EUROS[request.body.pop("currency")])
