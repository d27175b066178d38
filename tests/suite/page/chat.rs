//! The conversation: it is edited, generated again, kept and copied; what a model writes is Markdown, never HTML.

use super::{WAIT, visit};
use serde_json::{Value, json};

/// The messages of the log, in the order in which they stand.
const SAID: &str = "[...document.querySelectorAll('.turn')].map((t) => t.querySelector('.body').innerText.trim())";

fn done(count: usize) -> String {
    format!("answered({count})")
}

#[test]
fn a_conversation_is_cut_back_repeated_and_kept() {
    visit(|page| {
        page.evaluate("localStorage.clear(); press('fold')")?;
        page.evaluate("ask('What is 37 + 48?')")?;
        page.wait_for(&done(1), WAIT)?;
        page.evaluate("ask('What color is a carrot?')")?;
        page.wait_for(&done(2), WAIT)?;
        assert_eq!(
            page.evaluate("[...document.querySelectorAll('.turn.assistant')].map((t) => t.getAttribute('aria-label'))")?,
            json!(["demo", "demo"])
        );
        // An edited message ends the conversation there.
        page.evaluate("act(0, 'Edit'); document.querySelector('.editing textarea').value = 'What is 20 + 30?'; document.querySelector('.editing').requestSubmit()")?;
        page.wait_for(&done(1), WAIT)?;
        let said = json!(["What is 20 + 30?", "20 + 30 = 50."]);
        assert_eq!(page.evaluate(SAID)?, said);
        page.evaluate("act(1, 'Regenerate')")?;
        page.wait_for("doppler.state.busy", WAIT)?;
        page.wait_for(&done(1), WAIT)?;
        assert_eq!(page.evaluate(SAID)?, said, "the most likely token again");
        page.evaluate("navigator.clipboard.writeText = (text) => ((globalThis.copied = text), Promise.resolve()); act(1, 'Copy')")?;
        assert_eq!(page.evaluate("copied")?, "20 + 30 = 50.");
        // It is there after a new one, and in a new page.
        page.evaluate("press('new')")?;
        assert_eq!(page.evaluate(SAID)?, json!([]));
        page.evaluate("document.getElementById('talks').open = true; document.querySelector('#talks-list li button').click()")?;
        assert_eq!(page.evaluate(SAID)?, said);
        let kept: Value =
            serde_json::from_str(page.evaluate("localStorage.getItem('doppler-conversations')")?.as_str().unwrap_or_default())
                .map_err(|e| e.to_string())?;
        assert_eq!(kept.as_array().map(Vec::len), Some(1));
        assert_eq!((&kept[0]["title"], &kept[0]["messages"][1]["model"]), (&json!("What is 20 + 30?"), &json!("demo")));
        page.evaluate("document.querySelector('#talks-list li button[aria-label]').click()")?;
        assert_eq!(page.evaluate("localStorage.getItem('doppler-conversations')")?, "[]");
        // A system prompt reaches the template, which here has no place for one, and says so.
        page.evaluate("press('new'); document.getElementById('system').value = 'Be brief.'; ask('What is 1 + 1?')")?;
        page.wait_for(&done(1), WAIT)?;
        let note = page.evaluate("document.querySelector('.turn .note.bad').textContent")?;
        assert!(note.as_str().is_some_and(|note| note.contains("System role not supported")), "{note}");
        assert_eq!(page.evaluate("document.getElementById('ask').value")?, "What is 1 + 1?");
        // Escape stops.
        page.evaluate("document.getElementById('system').value = ''; document.querySelector('input[name=mode][value=text]').click()")?;
        page.evaluate("document.getElementById('maxTokens').value = 400; ask('Once upon a time')")?;
        page.wait_for("document.querySelector('.turn .given')?.textContent.length > 4", WAIT)?;
        page.evaluate("document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape', bubbles: true }))")?;
        page.wait_for(&done(1), WAIT)?;
        assert_eq!(page.evaluate("document.querySelector('.turn .note').textContent")?, "stopped");
        Ok(())
    });
}

/// What is no Markdown of ours stays text: no element, attribute or address comes of it.
#[test]
fn what_a_model_writes_is_never_html() {
    visit(|page| {
        let text = "# Title <b>x</b>\n- one\n  - two\n- **three** `<img>`\n\n3. c\n4. d\n\n> quote <script>alert(1)</script>\n\n```html\n<img src=x onerror=alert(1)>\n```\n\
                    [a](javascript:alert(1)) [b](https://example.com/?q=1\"onclick=x) [c](https://example.com/x) <iframe src=//x> &lt;i&gt; *em*";
        let deep = ">".repeat(20_000) + &"- ".repeat(20_000) + &"`a`".repeat(20_000) + &"**".repeat(20_001);
        let found = page.evaluate(&format!("shown({})", json!(text)))?;
        let tags: Vec<String> = serde_json::from_value(found["tags"].clone()).map_err(|e| e.to_string())?;
        let known = ["H4", "UL", "OL", "LI", "STRONG", "EM", "CODE", "PRE", "BLOCKQUOTE", "P", "A", "BR"];
        assert!(
            tags.iter().all(|tag| known.contains(&&**tag)) && known.iter().all(|tag| tags.iter().any(|t| t == tag) || *tag == "BR"),
            "{tags:?}"
        );
        assert_eq!(found["links"], json!(["https://example.com/x"]));
        let attributes = ["start", "tabindex", "aria-label", "href", "rel", "target"];
        let others: Vec<&str> =
            found["attributes"].as_array().into_iter().flatten().filter_map(Value::as_str).filter(|a| !attributes.contains(a)).collect();
        assert!(others.is_empty(), "{others:?}");
        for whole in [
            "<b>x</b>",
            "<script>alert(1)</script>",
            "<img src=x onerror=alert(1)>",
            "javascript:alert(1)",
            "<iframe src=//x>",
            "&lt;i&gt;",
        ] {
            assert!(found["text"].as_str().is_some_and(|text| text.contains(whole)), "{whole}: {}", found["text"]);
        }
        assert!(
            page.evaluate(&format!("shown({})", json!(deep)))?["text"].as_str().is_some_and(|text| text.contains('a')),
            "a deep text ends"
        );
        Ok(())
    });
}
