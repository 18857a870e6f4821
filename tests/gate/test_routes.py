"""The most specific route policy serves a request, and made-up paths cost no memory."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.catalog import Route
from tollkeeper.gate import routes
from tollkeeper.gate.routes import RouteTable


def route(path, method="GET", profile=None, id_=None):
    return Route(id=id_ or f"{method} {path} {profile}", method=method, path=path, profile=profile)


def matched(table, path, method="GET", profile="native"):
    found = table.match(method, path, profile)
    return None if found is None else found.path


LADDER = ("/v1/chat", "/v1/{name}", "/v1/{name}/{id}", "/v1/models/{id}", "/v1/models*", "/v1/*", "/*")


@pytest.mark.parametrize("order", list(permutations(LADDER))[::97])
def test_the_most_specific_template_wins_in_whatever_order_they_are_set(order):
    table = RouteTable([route(path) for path in order])
    assert matched(table, "/v1/chat") == "/v1/chat"
    assert matched(table, "/v1/embeddings") == "/v1/{name}"
    assert matched(table, "/v1/models/gpt") == "/v1/models/{id}"
    assert matched(table, "/v1/users/7") == "/v1/{name}/{id}"
    assert matched(table, "/v1/models/a/b") == "/v1/models*"
    assert matched(table, "/v1/a/b/c") == "/v1/*"
    assert matched(table, "/v2") == "/*"


def test_a_placeholder_is_one_segment_and_not_an_empty_one():
    table = RouteTable([route("/a/{x}/b")])
    assert matched(table, "/a/1/b") == "/a/{x}/b"
    assert matched(table, "/a//b") is None
    assert matched(table, "/a/1/2/b") is None
    assert matched(table, "/a/1/b//") is None


def test_a_template_matches_itself():
    """A caller who knows its route may name the template instead of the path."""
    assert matched(RouteTable([route("/a/{x}/b"), route("/*")]), "/a/{x}/b") == "/a/{x}/b"


def test_a_star_stands_for_nothing_too():
    table = RouteTable([route("/files*")])
    assert matched(table, "/files") == "/files*"
    assert matched(table, "/files/a\n/b") == "/files*"
    assert matched(table, "/file") is None


@given(st.text("ab.+()[]$^|\\-", min_size=1, max_size=8))
def test_a_path_is_text_and_no_pattern(text):
    table = RouteTable([route(f"/{text}/{{id}}")])
    assert matched(table, f"/{text}/1") == f"/{text}/{{id}}"
    assert matched(table, "/x" + text + "/1") is None


def test_a_method_of_its_own_goes_before_any():
    table = RouteTable([route("/a", "*"), route("/a", "POST"), route("/b/{x}", "*"), route("/b/{x}", "POST")])
    assert table.match("POST", "/a", "native").method == "POST"
    assert table.match("GET", "/a", "native").method == "*"
    assert table.match("POST", "/b/1", "native").method == "POST"
    assert table.match("PUT", "/b/1", "native").method == "*"


def test_another_method_is_another_route():
    assert matched(RouteTable([route("/a", "GET")]), "/a", "POST") is None


def test_head_is_served_as_get_unless_it_has_a_policy_of_its_own():
    table = RouteTable(
        [route("/a"), route("/b/{x}"), route("/c"), route("/c", "HEAD"), route("/d/{x}", "POST")]
    )
    assert table.match("HEAD", "/a", "native").method == "GET"
    assert table.match("HEAD", "/b/1", "native").method == "GET"
    assert table.match("HEAD", "/c", "native").method == "HEAD"
    assert table.match("HEAD", "/d/1", "native") is None
    both = RouteTable(
        [route("/e/{x}", id_="1"), route("/e/{x}", "HEAD", id_="2"), route("/e/{x}", "*", id_="0")]
    )
    assert both.match("HEAD", "/e/1", "native").method == "HEAD"
    assert both.match("GET", "/e/1", "native").method == "GET"
    assert both.match("PUT", "/e/1", "native").method == "*"


def test_a_slash_at_the_end_makes_no_cheaper_path():
    """Frameworks serve or redirect both: neither falls to a policy that stands for more."""
    table = RouteTable(
        [route("/paid"), route("/of/{x}"), route("/dir/"), route("/two"), route("/two/"), route("/*")]
    )
    assert matched(table, "/paid/") == "/paid"
    assert matched(table, "/of/1/") == "/of/{x}"
    assert matched(table, "/dir") == "/dir/"
    assert matched(table, "/two") == "/two"
    assert matched(table, "/two/") == "/two/"
    assert matched(table, "/paid//") == "/*"
    assert matched(RouteTable([route("/")]), "/") == "/"


def test_a_profiles_policy_goes_first_for_its_keys_and_serves_no_other():
    table = RouteTable([route("/a"), route("/a", profile="shoal"), route("/only", profile="shoal")])
    assert table.match("GET", "/a", "shoal").profile == "shoal"
    assert table.match("GET", "/a", "native").profile is None
    assert matched(table, "/only", profile="shoal") == "/only"
    assert matched(table, "/only", profile="native") is None


def test_an_exact_path_goes_before_a_template_of_the_profile():
    table = RouteTable([route("/v1/chat"), route("/v1/*", profile="shoal")])
    assert matched(table, "/v1/chat", profile="shoal") == "/v1/chat"


def test_equal_policies_are_told_apart_by_id():
    """Two nodes must not disagree on which of two equal policies serves."""
    first, second = route("/a/{x}", id_="a"), route("/a/{y}", id_="b")
    assert RouteTable([second, first]).match("GET", "/a/1", "native").id == "a"


@given(
    st.lists(st.sampled_from(("/a", "/a/{x}", "/{x}/b", "/a/*", "/a/b", "/{x}/{y}")), unique=True),
    st.lists(st.sampled_from(("/a", "/a/b", "/a/c", "/c/b", "/c/d", "/a/", "/")), max_size=12),
)
def test_what_is_remembered_is_what_is_found(paths, asked):
    table = RouteTable([route(path) for path in paths])
    for path in [*asked, *asked]:
        assert table.match("GET", path, "native") == table._find("GET", path, "native")


def test_made_up_paths_cannot_grow_the_memory(monkeypatch):
    monkeypatch.setattr(routes, "_CACHE_MAX", 50)
    table = RouteTable([route("/v1/{id}")])
    for number in range(500):
        assert matched(table, f"/v1/{number}") == "/v1/{id}"
        assert matched(table, f"/v2/{number}") is None
        assert len(table._cache) <= 50
