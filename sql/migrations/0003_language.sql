-- oldest code: 0.1.0
-- The language that the models of a base are trained, measured and decoded in, as Whisper spells it: de, yue, haw.

-- What was registered before, and what code before this registers, was trained as English.
alter table base_languages add column language text not null default 'en' check (language ~ '^[a-z]{2,3}$');
