ALTER TABLE articles DROP COLUMN currency;
