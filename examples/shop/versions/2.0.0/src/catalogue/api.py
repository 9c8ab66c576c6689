"""A price is a number of cents: `price` has become `cents`, and clients of 1.x are translated."""

from typing import Annotated

import msgspec
from msgspec import Meta

from catalogue.database import connect
from catalogue.from_1_1 import PriceToCents
from gati_core import App, GlobalContext, HandlerError, LocalContext, Request, Response

app = App("catalogue")
app.db_schema(
    "articles_v3",
    url="env:SHOP_DB",
    migrations="migrations/",
    compatible_with=["articles_v1", "articles_v2"],
)


class Article(msgspec.Struct):
    """An article that the shop sells."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    cents: Annotated[int, Meta(ge=0, le=100_000_000)]
    description: str = ""


@app.put("/articles/{sku}")
def put_article(req: Request[Article], res: Response[Article], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Add an article, or change it. Doing it twice is the same as once."""
    article = req.body
    with connect() as db:
        db.execute(
            "INSERT OR REPLACE INTO articles (sku, name, price, description) VALUES (?, ?, ?, ?)",
            (req.params["sku"], article.name, f"{article.cents / 100:.2f}", article.description),
        )
    res.json(article)


@app.get("/articles/{sku}")
def show_article(req: Request[None], res: Response[Article], gctx: GlobalContext, lctx: LocalContext) -> None:
    """One article, or 404."""
    with connect() as db:
        row = db.execute("SELECT name, cents, description FROM articles WHERE sku = ?", (req.params["sku"],)).fetchone()
    if row is None:
        raise HandlerError(f"there is no article {req.params['sku']}", 404, code="catalogue.no_such_article")
    res.json(Article(*row))


for handler in ("put_article", "show_article"):
    app.transformer(handler, from_version="v1.1.0")(PriceToCents)
