"""How queries are read from their files."""

import pytest

from worker.store.queries import read_queries


def test_a_name_with_braces_stands_for_a_query_of_each_choice():
    text = "-- name: by_{id,name}_{asc,desc}\n-- A page.\nselect * from models order by {1} {2}\n"
    read = read_queries(text, "lists")
    assert list(read) == ["by_id_asc", "by_id_desc", "by_name_asc", "by_name_desc"]
    assert read["by_name_desc"] == "-- name: by_name_desc\n-- A page.\nselect * from models order by name desc"


def test_a_let_line_may_use_those_before_it():
    text = "-- let short: id\n-- let long: {short}, name\n-- name: one\n-- One.\nselect {long} from models\n"
    assert read_queries(text, "lists")["one"].endswith("select id, name from models")


def test_braces_of_sql_are_left_alone():
    text = "-- name: one\n-- One.\nselect '{}'::text[], '{1}'::int[]\n"
    assert read_queries(text, "lists")["one"].endswith("select '{}'::text[], '{1}'::int[]")


def test_a_name_that_stands_twice_is_refused():
    text = "-- name: by_{a,b}\n-- X.\nselect 1\n-- name: by_b\n-- Y.\nselect 2\n"
    with pytest.raises(ValueError, match="by_b"):
        read_queries(text, "lists")
