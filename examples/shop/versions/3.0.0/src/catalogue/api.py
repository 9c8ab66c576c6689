"""Every price says its currency. Clients of 1.x and 2.x, which know one, are translated."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from catalogue.database import connect
from catalogue.from_1_1 import PriceToCents
from catalogue.from_2_0 import WithCurrency
from gati_core import App, GlobalContext, HandlerError, LocalContext, Request, Response

app = App("catalogue")
app.db_schema(
    "articles_v4",
    url="env:SHOP_DB",
    migrations="migrations/",
    compatible_with=["articles_v1", "articles_v2", "articles_v3"],
)


class Article(msgspec.Struct):
    """An article that the shop sells."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    cents: Annotated[int, Meta(ge=0, le=100_000_000)]
    currency: Literal["EUR", "USD", "GBP"]
    description: str = ""


@app.put("/articles/{sku}")
def put_article(req: Request[Article], res: Response[Article], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Add an article, or change it. Doing it twice is the same as once."""
    article = req.body
    with connect() as db:
        db.execute(
            "INSERT OR REPLACE INTO articles (sku, name, price, currency, description) VALUES (?, ?, ?, ?, ?)",
            (req.params["sku"], article.name, f"{article.cents / 100:.2f}", article.currency, article.description),
        )
    res.json(article)


@app.get("/articles/{sku}")
def show_article(req: Request[None], res: Response[Article], gctx: GlobalContext, lctx: LocalContext) -> None:
    """One article, or 404."""
    with connect() as db:
        row = db.execute(
            "SELECT name, cents, currency, description FROM articles WHERE sku = ?", (req.params["sku"],)
        ).fetchone()
    if row is None:
        raise HandlerError(f"there is no article {req.params['sku']}", 404, code="catalogue.no_such_article")
    res.json(Article(*row))


for handler in ("put_article", "show_article"):
    app.transformer(handler, from_version="v1.1.0", to_version="v2.0.0")(PriceToCents)
    app.transformer(handler, from_version="v2.0.0")(WithCurrency)
