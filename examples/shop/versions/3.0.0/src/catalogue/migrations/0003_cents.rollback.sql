ALTER TABLE articles DROP COLUMN cents;
