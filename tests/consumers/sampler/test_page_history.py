"""The view History: what each version learned, two of them side by side, their names, and who learned a record."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from consumers.sampler import routes_history
from pipeline.log import Publisher
from pipeline.records import Partition, Place
from pipeline.store.lineage import LineageBuilder
from tests.consumers.answering import serving
from tests.consumers.browsing import (
    PHONE,
    SCHEMES,
    browser as browser,  # a fixture
    card,
    page as page,  # a fixture
    violations,
    wide,
)
from tests.consumers.marked import Maker
from tests.consumers.running import configuration as served, running
from tests.consumers.sampler.test_page_now import GREY, half
from tests.consumers.working import configuration, publish, working
from tests.services import Topics, unique

DIGITS = Partition("digits", 0)
DROPPED = """bytes => {
  const given = new DataTransfer();
  given.items.add(new File([new Uint8Array(bytes)], "picture.png", { type: "image/png" }));
  return given;
}"""


def told(maker: Maker) -> None:
    """A version that learned two records and drifted, and one that has more to say of its classes."""
    lineage = LineageBuilder()
    lineage.learned([Place(DIGITS, 4), Place(DIGITS, 6)])
    lineage.change({"drift": {"update": 3, "reaction": "flush"}})
    accuracy = [{"prequential_accuracy": share} for share in (0.5, 0.75)]
    probes = [{"dark": {"now": share, "best": share, "first": share, "records": 4}} for share in (0.25, 0.5)]
    watermark = {"digits": {0: 7}}
    for number, more in enumerate(({"lineage": lineage.build()}, {})):
        maker.commit(metrics=accuracy[number], probes=probes[number], watermark=watermark, **more)


def test_it_tells_what_each_version_learned_and_compares_two(redis_url: str, page: Page) -> None:
    with serving(redis_url, "eyes") as (at, makers):
        told(makers["eyes"])
        assert at.serves("eyes", 5)
        page.goto(f"{at.url}/#history")
        shown = card(page, "eyes")
        versions = shown.get_by_role("list", name="Versions of eyes").get_by_role("listitem")
        expect(versions).to_have_count(5)
        expect(versions.nth(1)).to_have_text(
            re.compile(r"^version 4.*digits:0:4–6.*prequential accuracy 50.0 %.*Drift \(flush\)$")
        )
        shown.get_by_label("Compare").select_option("4")
        row = shown.get_by_role("row")
        expect(row.filter(has_text="prequential accuracy")).to_have_text("prequential accuracy50.0 %75.0 %")
        expect(row.filter(has_text="class dark")).to_have_text("class dark25.0 %50.0 %")
        shown.get_by_role("textbox", name="Record").fill("digits:0:6")
        shown.get_by_role("button", name="Find").click()
        expect(shown.get_by_role("status")).to_have_text("digits:0:6: learned by version 4, update 3")
        makers["eyes"].commit()
        expect(versions).to_have_count(6)
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
            assert violations(page) == []
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        assert (wide(page), violations(page)) == (0, [])


def test_two_versions_draw_the_same_codes_side_by_side(redis_url: str, page: Page) -> None:
    seeds = list[str]()
    page.on("request", lambda asked: seeds.extend(re.findall(r"/strip\?.*seed=(\d+)", asked.url)))
    with serving(redis_url, "drawings") as (at, makers):
        page.goto(f"{at.url}/#history")
        shown = card(page, "drawings")
        drawn = shown.get_by_role("img", name=re.compile("^16 drawings by version"))
        expect(drawn.first).to_have_attribute("aria-label", "16 drawings by version 1")
        expect(drawn.last).to_have_attribute("aria-label", "16 drawings by version 3")
        first, last = pixels(drawn.first), pixels(drawn.last)
        assert first != last
        shown.get_by_label("with", exact=True).select_option("1")
        expect(drawn.last).to_have_attribute("aria-label", "16 drawings by version 1")
        assert pixels(drawn.last) == first
        assert seeds == ["1"] * len(seeds)  # the same codes
        assert violations(page) == []
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        assert (wide(page), violations(page)) == (0, [])
        makers["drawings"].store.retire(makers["drawings"].fence, keep_last=1)
        makers["drawings"].commit()
        expect(drawn).to_have_count(0)  # version 1 is not kept


def pixels(canvas: Locator) -> str:
    data: str = canvas.evaluate("canvas => canvas.toDataURL()")
    return data


def test_an_alias_is_set_by_one_confirmed_click_and_by_keyboard(redis_url: str, page: Page) -> None:
    with serving(redis_url, "eyes") as (at, makers):
        page.goto(f"{at.url}/#history")
        shown = card(page, "eyes")
        shown.get_by_label("names").select_option("2")
        shown.get_by_role("button", name="Set …").click()
        question = page.get_by_role("dialog")
        expect(question).to_contain_text("Let stable name version 2 of eyes? Nothing has that name yet.")
        assert violations(page) == []
        page.keyboard.press("Escape")
        expect(question).to_be_hidden()
        assert makers["eyes"].store.aliases() == {}
        shown.get_by_role("button", name="Set …").press("Enter")
        expect(question.get_by_role("button", name="Cancel")).to_be_focused()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(shown.locator(".alias")).to_have_text("stable")
        assert makers["eyes"].store.aliases()["stable"].version == 2
        shown.get_by_label("names").select_option("1")
        shown.get_by_role("button", name="Set …").click()
        expect(question).to_contain_text("Now it names version 2.")
        question.get_by_role("button", name="Name it").click()
        expect(shown.get_by_role("listitem").filter(has_text="stable")).to_have_text(re.compile("^version 1"))


def test_a_version_is_promoted_and_rolled_back_by_one_confirmed_click(redis_url: str, page: Page) -> None:
    with serving(redis_url, "eyes") as (at, makers):
        page.goto(f"{at.url}/#history")
        versions = card(page, "eyes").get_by_role("list", name="Versions of eyes").get_by_role("listitem")
        versions.nth(1).get_by_role("button", name="Promote to version 2").click()
        question = page.get_by_role("dialog")
        expect(question).to_contain_text(
            re.compile(r"Let stable name version 2 of eyes\? Nothing has that name yet\.C")
        )
        question.get_by_role("button", name="Name it").press("Enter")
        expect(versions.filter(has_text="stable")).to_have_text(re.compile("^version 2"))
        expect(versions.nth(1).get_by_role("button")).to_have_count(0)
        expect(versions.nth(0).get_by_role("button")).to_have_text("Promote")
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
            assert violations(page) == []
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        assert (wide(page), violations(page)) == (0, [])
        back = versions.nth(2).get_by_role("button", name="Roll back to version 1")
        back.focus()
        makers["eyes"].commit()
        expect(versions).to_have_count(4)
        back = versions.nth(3).get_by_role("button", name="Roll back to version 1")
        expect(back).to_be_focused()  # although the list was made anew
        page.keyboard.press("Enter")
        expect(question).to_contain_text("Now it names version 2. stable goes back.")
        question.get_by_role("button", name="Name it").click()
        expect(versions.filter(has_text="stable")).to_have_text(re.compile("^version 1"))
        assert makers["eyes"].store.aliases()["stable"].version == 1


def test_a_record_is_found_by_its_id_and_by_the_picture_itself(
    kafka: str, redis_url: str, topics: Topics, page: Page
) -> None:
    topic, name = topics(), unique("signs")
    table = {"learner": "image-analytic", "input": GREY}
    config = configuration(kafka, redis_url, topic, name=name, **table)
    picture = {"name": "left.png", "mimeType": "image/png", "buffer": half("left")}
    with working(config) as worker, running(served(redis_url, {name: {**table, "topics": [topic]}}, kafka)) as at:
        with Publisher(config.kafka) as publisher:
            publisher.publish(topic, half("left"), headers=[("label", b"left"), ("id", b"mine")])
        worker.read(1)
        publish(config, topic, (half("right"), "right"), (half("left"), "left"))
        worker.read(3)
        page.goto(f"{at.url}/#history")
        shown = card(page, name)
        found = shown.get_by_role("status").locator("p")
        shown.get_by_role("textbox", name="Record").fill("mine")
        shown.get_by_role("textbox", name="Record").press("Enter")
        expect(found).to_have_text(re.compile(f"^{topic}:0:0: learned by version"))
        shown.get_by_label("Choose a picture").set_input_files(picture)  # type: ignore[arg-type]
        expect(found).to_have_count(2)
        expect(found.last).to_have_text(re.compile(f"^{topic}:0:2: learned by version"))
        dropped = page.evaluate_handle(DROPPED, list(half("right")))
        shown.get_by_role("textbox", name="Record").dispatch_event("drop", {"dataTransfer": dropped})
        expect(found).to_have_text(re.compile(f"^{topic}:0:1: learned by version"))
        assert violations(page) == []
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        assert (wide(page), violations(page)) == (0, [])
        page.goto("about:blank")


def test_what_is_not_among_the_newest_records_is_not_found(kafka: str, redis_url: str, topics: Topics) -> None:
    topic, name = topics(), unique("signs")
    table = {"learner": "image-analytic", "input": GREY, "topics": [topic]}
    config = configuration(kafka, redis_url, topic, name=name, learner="image-analytic", input=GREY)
    publish(config, topic, *[(half("left"), "left"), (half("right"), "right")])
    with running(served(redis_url, {name: table}, kafka)) as at, pytest.MonkeyPatch.context() as patch:
        [told] = at.client.post(f"/models/{name}/find", content=half("left")).json()
        assert (told["offset"], told["outcome"]) == (0, "not yet")
        patch.setattr(routes_history, "NEWEST", 1)
        refused = at.client.post(f"/models/{name}/find", content=half("left"))
        assert (refused.status_code, refused.json()["error"]) == (404, "not-found")
        assert refused.json()["detail"].startswith(f"None of the newest 1 records of each partition of {topic} has the")
        assert at.client.post(f"/models/{name}/find").status_code == 422
        foreign = {"Origin": "http://elsewhere.example"}
        assert at.client.post(f"/models/{name}/find?id=x", headers=foreign).status_code == 403


def test_what_was_not_done_is_said(redis_url: str, page: Page) -> None:
    with serving(redis_url, "eyes") as (at, _):
        page.goto(f"{at.url}/#history")
        shown = card(page, "eyes")
        page.route("**/aliases/*", lambda route: route.abort())
        shown.get_by_label("names").select_option("1")  # once it is there
        shown.get_by_role("button", name="Set …").click()
        page.get_by_role("dialog").get_by_role("button", name="Name it").click()
        expect(shown.get_by_role("alert")).to_have_text("The sampler does not answer.")
