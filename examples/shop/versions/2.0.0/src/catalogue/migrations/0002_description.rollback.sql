ALTER TABLE articles DROP COLUMN description;
