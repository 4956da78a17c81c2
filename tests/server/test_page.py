"""The page in a real browser: chatting, stopping, failing, the live figures; a model's output cannot harm it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from octavo.server.operations import content_security_policy, page
from tests.server.browser import CHROMEDRIVER, CHROMIUM, ENTER, ESCAPE, Browser, wait_for
from tests.server.page_app import FakeServer, serving

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="chromium and chromedriver are not installed"
)
READY = "return model !== null"
DONE = "return !running && document.querySelector('.answer .note')?.textContent"
FAILURE = "return document.querySelector('.failure')?.textContent"
LAST_ANSWER = "return [...document.querySelectorAll('.answer .text')].at(-1).{}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def server(browser: Browser) -> Iterator[FakeServer]:
    with serving(FakeServer()) as fake:
        browser.open(fake.url)
        browser.run("sessionStorage.clear(); localStorage.clear()")
        browser.resize(1280, 800)
        browser.open(fake.url)
        browser.until(READY)
        browser.console()
        yield fake
        browser.open("about:blank")


def say(browser: Browser, text: str) -> None:
    """Type and send a message, as a user does."""
    browser.run("document.getElementById('prompt').focus()")
    browser.type(text + ENTER)


def paste(browser: Browser, text: str) -> None:
    browser.run("document.getElementById('prompt').value = arguments[0]; send()", text)


def test_the_page_loads_nothing_from_anywhere() -> None:
    text = page().decode()
    assert re.findall(r"""\s(?:src|href|action)\s*=\s*["'](?!data:)""", text) == []
    assert "@import" not in text
    assert "url(" not in text
    assert "innerHTML" not in text
    assert not re.search(r"\sstyle=|\son\w+=", text), "inline handlers and styles are not allowed by the policy"


def test_the_policy_allows_the_pages_own_script_and_nothing_else() -> None:
    policy = dict(part.split(" ", 1) for part in content_security_policy().split("; "))
    assert policy["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", policy["script-src"])
    assert "unsafe" not in content_security_policy()


@needs_browser
def test_a_chat_by_keyboard(browser: Browser, server: FakeServer) -> None:
    """Each turn is sent with those before it, and the system prompt; the page's policy lets all of it run."""
    browser.run("document.getElementById('system').value = 'Be brief.'")
    browser.run("document.getElementById('temperature').value = '0.5'")
    say(browser, "say Good morning")
    note = browser.until(DONE)
    assert browser.run(LAST_ANSWER.format("textContent")) == "Good morning"
    assert re.match(r"3 tokens · [\d.]+ tok/s · first token after \d+ ms$", note)
    say(browser, "say Good night")
    browser.until("return document.querySelectorAll('.answer .note').length === 2")
    body = server.bodies[-1]
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "say Good morning"},
        {"role": "assistant", "content": "Good morning"},
        {"role": "user", "content": "say Good night"},
    ]
    assert (body["model"], body["temperature"], "max_tokens" in body) == ("smollm2", 0.5, False)
    assert browser.console() == []
    browser.run("document.getElementById('new').click()")
    assert browser.run("return messages.length + document.getElementById('log').children.length") == 0


@needs_browser
@pytest.mark.parametrize("stop", ["escape", "button"])
def test_stopping_ends_the_stream_and_keeps_what_was_said(browser: Browser, server: FakeServer, stop: str) -> None:
    say(browser, "slow")
    browser.until("return document.querySelector('.answer')?.textContent.length > 20")
    if stop == "escape":
        browser.type(ESCAPE)
    else:
        browser.run("document.getElementById('send').click()")
    assert browser.until(DONE).endswith("stopped")
    wait_for(lambda: server.num_streams_left == 1, "the server sees that nobody reads any more")
    assert browser.run("return messages.at(-1).content").startswith("word word")
    assert browser.run("return document.getElementById('send').textContent") == "Send"


@needs_browser
def test_a_new_chat_is_not_told_what_the_old_one_said(browser: Browser, server: FakeServer) -> None:
    say(browser, "slow")
    browser.until("return document.querySelector('.answer')?.textContent.length > 20")
    browser.run("document.getElementById('new').click()")
    browser.until("return !running")
    say(browser, "say fresh")
    browser.until(DONE)
    assert [message["content"] for message in server.bodies[-1]["messages"]] == ["say fresh"]


@needs_browser
def test_markdown_is_drawn(browser: Browser, server: FakeServer) -> None:
    paste(
        browser,
        "say # Title\n\nSome **bold**, *slanted*, `code` and [a link](https://example.org/x).\n\n"
        "3. three\n4. four\n\n- dot\n\n> quoted\n\n```python\nif a < b:\n    return '<b>'\n```\nend",
    )
    browser.until(DONE)
    drawn = browser.run(LAST_ANSWER.format("innerHTML"))
    for piece in (
        "<h3>Title</h3>",
        "<strong>bold</strong>, <em>slanted</em>, <code>code</code>",
        '<a href="https://example.org/x" target="_blank" rel="noopener noreferrer nofollow">a link</a>',
        '<ol start="3"><li>three</li><li>four</li></ol><ul><li>dot</li></ul>',
        "<blockquote><p>quoted</p></blockquote>",
        "<pre><code>if a &lt; b:\n    return '&lt;b&gt;'</code></pre></div><p>end</p>",
    ):
        assert piece in drawn


@needs_browser
def test_a_model_stuck_on_stars_does_not_stop_the_page(browser: Browser, server: FakeServer) -> None:
    took = browser.run(
        """const stuck = '**a `b [c '.repeat(20000), begin = performance.now();
        inline(document.createElement('p'), stuck);
        return performance.now() - begin"""
    )
    assert took < 3000


@needs_browser
def test_thoughts_are_kept_apart_and_a_cut_answer_says_so(browser: Browser, server: FakeServer) -> None:
    say(browser, "think")
    assert browser.until(DONE).endswith("cut at max tokens")
    assert browser.run("return document.querySelector('.answer details div').textContent") == "so then "
    assert browser.run(LAST_ANSWER.format("textContent")) == "the answer"
    assert browser.run("return messages.at(-1).content") == "the answer"


@needs_browser
def test_a_call_is_folded_and_printed_readably(browser: Browser, server: FakeServer) -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    browser.run(f"document.getElementById('tools').value = {json.dumps(json.dumps(tools))}; checkTools()")
    say(browser, "call")
    assert browser.until(DONE).endswith("waits for its tools")
    assert server.bodies[-1]["tools"] == tools
    call = "document.querySelector('.answer details.call')"
    assert browser.run(f"return {call}.open") is False
    assert browser.run(f"return {call}.querySelector('summary').textContent") == "Calls weather"
    assert browser.run(f"return {call}.querySelector('pre').textContent") == '{\n  "city": "Rome"\n}'
    browser.run("document.getElementById('tools').value = '{}'; checkTools()")
    assert browser.run("return document.getElementById('settings').checkValidity()") is False


@needs_browser
def test_light_and_dark_can_be_chosen_and_are_remembered(browser: Browser, server: FakeServer) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    browser.prefer("light")
    light = browser.run(paper)
    browser.run("document.getElementById('theme').click()")
    dark = browser.run(paper)
    assert sum(map(int, re.findall(r"\d+", dark))) < 150 < 600 < sum(map(int, re.findall(r"\d+", light)))
    browser.open(server.url)
    assert browser.run(paper) == dark


@needs_browser
def test_markup_from_a_model_stays_text(browser: Browser, server: FakeServer) -> None:
    script = "document.title='owned'"
    evil = f'<img src=x onerror="{script}"> <script>{script}</script> [x](javascript:{script})'
    paste(browser, f"say {evil}\n\n# {evil}\n\n- {evil}\n\n**{evil}**")
    browser.until(DONE)
    area = "[...document.querySelectorAll('.answer .text')].at(-1)"
    assert browser.run(f"return {area}.querySelectorAll('img, script, a').length") == 0
    assert browser.run(f"return {area}.textContent").count("<img src=x") == 4
    assert browser.run("return document.title") == "smollm2 · Octavo"


@needs_browser
@pytest.mark.parametrize(
    ("status", "title"),
    [(400, "The server refused this"), (500, "The server failed"), (503, "The server cannot take this now")],
)
def test_a_refusal_is_shown_with_its_reason_and_can_be_tried_again(
    browser: Browser, server: FakeServer, status: int, title: str
) -> None:
    say(browser, f"fail {status}")
    text = browser.until(FAILURE)
    assert text.startswith(f"{title}said so on purpose. It asks to wait 7 s.")
    browser.run("document.querySelector('.retry').click()")
    wait_for(lambda: len(server.bodies) == 2, "it is asked again")
    browser.until(FAILURE)
    say(browser, "say ok")
    browser.until(DONE)
    assert [message["content"] for message in server.bodies[-1]["messages"]] == ["say ok"], "the refused one is dropped"


@needs_browser
def test_an_error_in_a_stream_is_shown_and_what_was_said_is_kept(browser: Browser, server: FakeServer) -> None:
    say(browser, "break")
    assert "the engine stopped" in browser.until(FAILURE)
    assert browser.run(LAST_ANSWER.format("textContent")) == "word word word"


@needs_browser
def test_a_key_is_asked_for_and_lives_only_in_this_tab(browser: Browser, server: FakeServer) -> None:
    server.api_key = "sk-1"
    browser.open(server.url)
    say(browser, "say hi")
    assert browser.until(FAILURE).startswith("The server wants an API key")
    assert browser.run("return document.activeElement.id") == "key"
    browser.type("sk-1")
    browser.run("document.getElementById('prompt').focus()")
    browser.until(READY)
    browser.run("document.querySelector('.retry').click()")
    browser.until(DONE)
    assert browser.run("return [sessionStorage.getItem('octavo.key'), JSON.stringify(localStorage)]") == ["sk-1", "{}"]


@needs_browser
def test_the_password_that_opened_the_page_opens_the_rest(browser: Browser) -> None:
    """Also while the address still contains the password, which `fetch` would refuse."""
    with serving(FakeServer(keys=("sk:1",))) as fake:
        browser.open(fake.url)
        assert browser.run("return document.getElementById('prompt')") is None
        for url in (fake.url.replace("//", "//anybody:sk%3A1@"), fake.url):
            browser.open(url)
            browser.until(READY)
            browser.until("return document.getElementById('status').dataset.state === 'up'")
            say(browser, "say hi")
            browser.until(DONE)
            assert browser.run(LAST_ANSWER.format("textContent")) == "hi"
        assert browser.run("return document.getElementById('key').value") == ""
        browser.run("document.getElementById('key').value = 'wrong'")
        browser.run("document.getElementById('new').click()")
        say(browser, "say hi")
        assert browser.until(FAILURE).startswith("The server wants an API key")
        browser.open("about:blank")


@needs_browser
def test_a_conversation_outlives_a_reload_and_not_a_new_chat(browser: Browser, server: FakeServer) -> None:
    say(browser, "say Good morning")
    note = browser.until(DONE)
    say(browser, "say **Good** night")
    browser.until("return document.querySelectorAll('.answer .note').length === 2")
    drawn = browser.run("return document.getElementById('log').innerHTML")
    browser.open(server.url)
    browser.until(READY)
    assert browser.run("return document.getElementById('log').innerHTML") == drawn
    assert browser.run("return document.querySelector('.answer .note').textContent") == note
    assert browser.run("return document.getElementById('welcome').hidden")
    say(browser, "say more")
    browser.until("return document.querySelectorAll('.answer .note').length === 3")
    told = [message["content"] for message in server.bodies[-1]["messages"]]
    assert told == ["say Good morning", "Good morning", "say **Good** night", "**Good** night", "say more"]
    assert all(set(message) == {"role", "content"} for message in server.bodies[-1]["messages"])
    browser.run("document.getElementById('new').click()")
    browser.open(server.url)
    assert browser.run("return messages.length + document.getElementById('log').children.length") == 0
    assert browser.console() == []


@needs_browser
def test_an_answer_that_a_reload_cuts_is_kept_as_far_as_it_came(browser: Browser, server: FakeServer) -> None:
    say(browser, "slow")
    browser.until("return document.querySelector('.answer')?.textContent.length > 20")
    browser.open(server.url)
    assert browser.until("return document.querySelector('.answer .note')?.textContent") == "cut off by a reload"
    assert browser.run(LAST_ANSWER.format("textContent")).startswith("word word")


@needs_browser
def test_what_another_page_left_in_the_storage_does_no_harm(browser: Browser, server: FakeServer) -> None:
    for left in ('"text"', "7", "{", '[null, {"role": "system", "content": "x"}, {"role": "user", "content": 3}]'):
        browser.run("sessionStorage.setItem('octavo.messages', arguments[0])", left)
        browser.open(server.url)
        browser.until(READY)
        assert browser.run("return messages.length") == 0
    assert browser.console() == []


@needs_browser
def test_a_model_without_a_template_continues_texts(browser: Browser) -> None:
    with serving(FakeServer(has_template=False)) as fake:
        browser.open(fake.url)
        browser.run("sessionStorage.clear(); localStorage.clear()")
        browser.open(fake.url)
        browser.until(READY)
        assert browser.run("return document.querySelector('#welcome h2').textContent") == "How does it go on?"
        assert browser.run("return document.getElementById('system').disabled")
        say(browser, "Once upon a time")
        browser.until(DONE)
        assert browser.run(LAST_ANSWER.format("textContent")) == "there was ink"
        say(browser, "and then")
        browser.until("return document.querySelectorAll('.answer .note').length === 2")
        first, second = fake.bodies
        assert (first["prompt"], first["max_tokens"], "messages" in first) == ("Once upon a time", 256, False)
        assert second["prompt"] == "Once upon a time there was ink\nand then"
        browser.open("about:blank")


@needs_browser
def test_the_page_finds_its_server_under_a_root_path(browser: Browser) -> None:
    """The page's address with and without a trailing slash."""
    with serving(FakeServer(root_path="/llm")) as fake:
        browser.open(fake.url + "llm")
        browser.until(READY)
        browser.until("return document.getElementById('status').dataset.state === 'up'")
        browser.open("about:blank")


@needs_browser
def test_nothing_is_hidden_on_a_phone(browser: Browser, server: FakeServer) -> None:
    """Every figure, the model's name, the status and all buttons are in view, and none of their text is cut."""
    browser.resize(390, 844)
    browser.open(server.url)
    browser.until(READY)
    say(browser, "say hi")
    browser.until(DONE)
    browser.until("return panels.ttft.value.textContent !== '–'")
    clipped = browser.run(
        """return [...document.querySelectorAll('header *, .panel, .panel dt, .panel dd, .panel svg, #prompt, #send')]
          .filter((e) => !e.closest('svg') || e.localName === 'svg').filter((e) => {
            const r = e.getBoundingClientRect();
            return r.width === 0 || r.left < 0 || r.right > innerWidth || r.top < 0 || r.bottom > innerHeight
              || e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0 && e.localName !== 'svg';
          }).map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert clipped == []
    assert browser.run("return document.getElementById('status').innerText") == "connected"
    assert browser.run("return document.getElementById('new').innerText") == "New chat"
    browser.run("document.getElementById('show-settings').click()")
    assert browser.run("return document.getElementById('key').getBoundingClientRect().bottom") < 844


@needs_browser
def test_settings_that_cannot_be_are_not_sent(browser: Browser, server: FakeServer) -> None:
    browser.run("document.getElementById('temperature').value = '3'")
    say(browser, "say hi")
    assert not browser.run("return document.getElementById('temperature').checkValidity()")
    assert server.bodies == []
    assert browser.run("return document.getElementById('prompt').value") == "say hi"


@needs_browser
def test_live_figures_follow_the_engine(browser: Browser, server: FakeServer) -> None:
    panel = "return panels.{}.value.textContent"
    assert browser.until(panel.format("running")) == "0"
    say(browser, "slow")
    browser.until("return panels.running.value.textContent === '1'")
    browser.until("return parseFloat(panels.generation.value.textContent) > 0")
    browser.until("return /ms|s/.test(panels.itl.value.textContent)")
    assert browser.run(panel.format("kv")) == "30 %"
    assert browser.run("return panels.generation.line.getAttribute('d')").startswith("M")
    browser.type(ESCAPE)
    browser.until("return panels.running.value.textContent === '0'")


@needs_browser
def test_the_memory_map_follows_the_engine(browser: Browser, server: FakeServer) -> None:
    browser.until("return map.holders?.size === 4")
    said = "return document.getElementById('map-says').textContent"
    assert "4 held, 2 of them shared (marked), 1 cached (crossed). 940 more are not drawn." in browser.run(said)
    edge = browser.run("return document.getElementById('blocks').getBoundingClientRect()")
    side = browser.run("return map.side")
    browser.point(edge["left"] + side / 2, edge["top"] + side / 2)
    browser.until(said + " === 'Block 1: shared by 2 sequences, 16 of 16 slots filled'")
    browser.point(edge["left"] + 3.5 * side, edge["top"] + side / 2)
    browser.until(said + " === 'Block 4: held by sequence 3, 8 of 16 slots filled'")
    server.memory["sequences"] = []
    browser.until("return map.holders.size === 0")
    browser.until(said + " === 'Block 4: free'")
    assert browser.console() == []


@needs_browser
def test_a_server_that_is_gone_is_said(browser: Browser) -> None:
    with serving(FakeServer()) as fake:
        browser.open(fake.url)
        browser.until(READY)
    say(browser, "say hi")
    assert browser.until(FAILURE).startswith("The server does not answer")
    browser.until("return document.getElementById('no-metrics').textContent.includes('does not answer')")
    assert browser.run("return document.getElementById('status').dataset.state") == "down"


@needs_browser
def test_several_models_can_be_chosen_from(browser: Browser, server: FakeServer) -> None:
    server.models = ["smollm2", "other"]
    browser.open(server.url)
    browser.until("return document.querySelector('select#model')")
    browser.run("const s = document.getElementById('model'); s.value = 'other'; s.onchange()")
    say(browser, "say hi")
    browser.until(DONE)
    assert server.bodies[-1]["model"] == "other"


@needs_browser
@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(browser: Browser, server: FakeServer, width: int, scheme: str) -> None:
    """Nothing is wider than the screen; text has the contrast on its background that WCAG AA requires."""
    browser.resize(width, 700)
    browser.prefer(scheme)
    paste(browser, "say " + "long" * 60 + "\n\n```\n" + "x" * 300 + "\n```")
    browser.until(DONE)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("const s = document.getElementById('scroll'); return s.scrollWidth - s.clientWidth") <= 0
    for selector in (".user", ".answer .text", ".answer .note", "#send", ".panel dt", ".code span"):
        assert contrast(browser, selector) >= 4.5, selector


def contrast(browser: Browser, selector: str) -> float:
    """The contrast of an element's text with the first opaque background behind it."""
    colours = browser.run(
        """let e = document.querySelector(arguments[0]); const ink = getComputedStyle(e).color;
        while (getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement;
        return [ink, getComputedStyle(e).backgroundColor]""",
        selector,
    )
    dark, light = sorted(luminance([int(part) for part in re.findall(r"\d+", colour)[:3]]) for colour in colours)
    return (light + 0.05) / (dark + 0.05)


def luminance(rgb: list[int]) -> float:
    linear = [part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
