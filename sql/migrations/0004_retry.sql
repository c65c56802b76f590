-- oldest code: 0.1.0
-- Holds the place of a migration that comes with retries; replaced by it.

select 1;
