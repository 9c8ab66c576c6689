"""The catalogue as it began: an article has a name and a price."""

from typing import Annotated

import msgspec
from msgspec import Meta

from catalogue.database import connect
from gati_core import App, GlobalContext, HandlerError, LocalContext, Request, Response

app = App("catalogue")
app.db_schema("articles_v1", url="env:SHOP_DB", migrations="migrations/")


class Article(msgspec.Struct):
    """An article that the shop sells."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    price: Annotated[str, Meta(pattern=r"^[0-9]{1,6}\.[0-9]{2}$")]
    """In euros, such as "4.50"."""


@app.put("/articles/{sku}")
def put_article(req: Request[Article], res: Response[Article], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Add an article, or change it. Doing it twice is the same as once."""
    article = req.body
    with connect() as db:
        db.execute(
            "INSERT OR REPLACE INTO articles (sku, name, price) VALUES (?, ?, ?)",
            (req.params["sku"], article.name, article.price),
        )
    res.json(article)


@app.get("/articles/{sku}")
def show_article(req: Request[None], res: Response[Article], gctx: GlobalContext, lctx: LocalContext) -> None:
    """One article, or 404."""
    with connect() as db:
        row = db.execute("SELECT name, price FROM articles WHERE sku = ?", (req.params["sku"],)).fetchone()
    if row is None:
        raise HandlerError(f"there is no article {req.params['sku']}", 404, code="catalogue.no_such_article")
    res.json(Article(*row))
