"""Who may ask: a token where others can reach the service, the page's own origin, limits."""

import re
from pathlib import Path

import httpx2 as httpx
import pytest
from tests.pipeline.serve.service import serving

from vococache.errors import InputError
from vococache.pipeline.serve.app import PAGE
from vococache.pipeline.serve.service import Address, _listen

BODY = {"model": "synthetic", "video": "clip-0", "messages": [{"role": "user", "content": "what moves?"}]}


def test_beyond_loopback_a_token_is_made_and_wanted(shelf: Path) -> None:
    with serving(shelf, "--host", "0.0.0.0", "--sources") as (_, address):
        url, _, token = address.partition("#token=")
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert len(token) >= 32
        for path in (
            "videos",
            "v1/models",
            "metrics",
            "openapi.json",
            "videos/clip-0/source",
            "videos/clip-0/thumbnails",
        ):
            for headers in ({}, {"authorization": "Bearer wrong"}, {"cookie": "voco_token=wrong"}):
                refused = httpx.get(url + path, headers=headers)
                assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert httpx.post(f"{url}v1/chat/completions", json=BODY).status_code == 401
        assert httpx.post(f"{url}session").status_code == 401
        # The page itself shows nothing of the store.
        assert [httpx.get(url + path).status_code for path in ("", "page/main.js", "healthz")] == [200, 200, 200]
        shown = {"authorization": f"Bearer {token}"}
        assert httpx.get(f"{url}videos", headers=shown).json()["total"] == 6
        cookie = httpx.post(f"{url}session", headers=shown).headers["set-cookie"]
        assert re.fullmatch(r"(voco_\w{8}=[\w-]+); HttpOnly; Path=/; SameSite=Strict", cookie)
        pair = cookie.partition(";")[0]
        assert httpx.get(f"{url}videos/clip-0/source", headers={"cookie": pair}).status_code == 200


def test_a_token_of_ones_own(shelf: Path) -> None:
    with serving(shelf, VOCO_TOKEN="a b&c") as (_, address):
        url, _, token = address.partition("#token=")
        assert token == "a%20b%26c"
        assert httpx.get(f"{url}videos").status_code == 401
        assert httpx.get(f"{url}videos", headers={"authorization": "Bearer a b&c"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost:1"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}, 200),
        ({"content-type": "text/plain"}, 400),  # which a page elsewhere may send without asking
    ],
)
def test_other_origins_and_hosts_are_refused(service: str, headers: dict[str, str], status: int) -> None:
    if "content-type" not in headers:
        assert httpx.get(f"{service}videos", headers=headers).status_code == status
    sent = {"content-type": "application/json"} | headers
    reply = httpx.post(
        f"{service}v1/chat/completions", content=httpx.Request("POST", "/", json=BODY).content, headers=sent
    )
    assert reply.status_code == status
    assert "access-control-allow-origin" not in reply.headers


def test_a_link_from_elsewhere_opens_the_page_alone(service: str) -> None:
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert httpx.get(service, headers=followed).status_code == 200
    assert httpx.get(f"{service}videos", headers=followed).status_code == 403


def test_bodies_have_a_limit(service: str) -> None:
    large = b'{"model": "' + b"x" * (1 << 20) + b'"}'
    headers = {"content-type": "application/json"}
    for content in (large, iter([large[:1000], large[1000:]])):  # with its length told, and in parts
        reply = httpx.post(f"{service}v1/chat/completions", content=content, headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "content_too_large")


@pytest.mark.parametrize("path", ["", "videos", "nothing", "videos/clip-0/thumbnails", "page/main.js", "v1/models"])
def test_every_reply_has_the_headers(service: str, path: str) -> None:
    headers = httpx.get(service + path, timeout=60).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in headers


def test_the_page_fetches_nothing_from_elsewhere() -> None:
    for file in PAGE.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|eval\(|style=\"", text), file.name


def test_where_it_cannot_listen_is_said() -> None:
    with _listen(Address(port=0)) as taken, pytest.raises(InputError, match="--port takes another"):
        _listen(Address(port=taken.getsockname()[1]))
    with pytest.raises(InputError, match="not known"):
        _listen(Address(host="no.such.host.invalid"))
