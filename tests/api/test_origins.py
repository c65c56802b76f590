"""Browsers of other origins: only those that a setting names, with the entity tag readable."""

import pytest

PAGE = "https://app.example"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization"}


class TestNamed:
    @pytest.fixture
    def api_settings(self):
        return {"api_allowed_origins": f"{PAGE}, https://other.example"}

    async def test_a_named_origin_may_call_and_read_the_tag(self, live, customer):
        model = await customer.model()
        answer = await customer.http.get(f"/custom_models/{model['id']}", headers={"Origin": PAGE})
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "ETag" in answer.headers["access-control-expose-headers"]
        preflight = await live.client(None).options(f"/custom_models/{model['id']}", headers=PREFLIGHT)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, PAGE)
        polled = {"Origin": PAGE, "If-None-Match": answer.headers["etag"]}
        again = await customer.http.get(f"/custom_models/{model['id']}", headers=polled)
        assert (again.status_code, again.headers["access-control-allow-origin"]) == (304, PAGE)

    async def test_another_origin_gets_no_permission(self, customer):
        answer = await customer.http.get("/caller", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in answer.headers


async def test_without_the_setting_no_origin_is_allowed(customer):
    answer = await customer.http.get("/caller", headers={"Origin": PAGE})
    assert "access-control-allow-origin" not in answer.headers


async def test_a_wrong_method_is_told_the_right_ones(customer):
    answer = await customer.http.request("PATCH", "/custom_models/1")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert {"GET", "PUT", "DELETE"} <= set(answer.headers["allow"].split(", "))
    unknown = await customer.http.get("/nothing/here")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
