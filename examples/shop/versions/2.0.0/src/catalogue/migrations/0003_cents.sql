-- Older versions go on writing prices as text, so the number follows from it: neither can be stale.
ALTER TABLE articles ADD COLUMN cents INTEGER GENERATED ALWAYS AS (CAST(round(price * 100) AS INTEGER)) VIRTUAL;
