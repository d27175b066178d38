//! What stays when something else is loaded: the model that works, and an edit of its config that nobody has applied.

use super::{WAIT, gemma2, load_golden, visit};
use serde_json::json;

#[test]
fn a_failed_load_keeps_the_model_that_worked() {
    visit(|page| {
        page.evaluate("globalThis.before = doppler.state.model; press('open-load'); document.getElementById('source').value = './models/nothing'; press('load-go')")?;
        page.wait_for("!document.getElementById('alarm').hidden", WAIT)?;
        let said = page.evaluate("text('alarm')")?;
        assert!(said.as_str().is_some_and(|said| said.contains("demo is still loaded")), "{said}");
        assert_eq!(
            page.evaluate("doppler.state.model === before && document.getElementById('about-model').textContent.startsWith('demo')")?,
            true
        );
        page.evaluate("press('fold'); ask('What is 37 + 48?')")?;
        page.wait_for("answered(1)", WAIT)?;
        assert_eq!(page.evaluate("document.querySelector('.turn .given').textContent")?, "37 + 48 = 85.");
        page.evaluate("document.getElementById('alarm').hidden = true")?;
        Ok(())
    });
}

#[test]
fn an_edited_config_is_never_dropped_in_silence() {
    let golden = gemma2();
    visit(|page| {
        let edit = "changeConfig({ query_pre_attn_scalar: 99 })";
        // Closed without loading: the page says so, and offers both.
        page.evaluate("press('open-load'); document.getElementById('config-part').open = true; press('read-config')")?;
        page.wait_for("document.getElementById('config-text').value", WAIT)?;
        page.evaluate("press('close-load')")?;
        assert_eq!(page.evaluate("document.getElementById('unapplied').hidden")?, true, "nothing is edited");
        page.evaluate(&format!("press('open-load'); {edit}; press('close-load')"))?;
        page.wait_for("!document.getElementById('unapplied').hidden", WAIT)?;
        let said = page.evaluate("text('unapplied-text')")?;
        assert!(said.as_str().is_some_and(|said| said.contains("edited for the built-in model")), "{said}");
        // Another model is chosen: nothing is loaded before it is said what the edit is for.
        page.evaluate("press('open-load')")?;
        page.set_files("#pick-files", &[&golden.folder.join("config.json"), &golden.folder.join("model.safetensors")])?;
        page.wait_for("!document.getElementById('undecided').hidden", WAIT)?;
        page.evaluate("globalThis.before = doppler.state.model; press('load-go')")?;
        assert_eq!(page.evaluate("document.getElementById('load').open && !document.getElementById('load-told').hidden")?, true);
        assert_eq!(page.evaluate("JSON.parse(document.getElementById('config-text').value).query_pre_attn_scalar")?, 99);
        page.evaluate("press('discard-edit')")?;
        assert_eq!(page.evaluate("document.getElementById('config-text').value")?, "");
        page.evaluate("press('load-go')")?;
        page.wait_for("loaded() && doppler.state.model !== before", WAIT)?;
        assert_eq!(page.evaluate("doppler.state.origin.edited")?, false);
        // Applied where it was read, it is in the model, and nothing is left to say.
        load_golden(
            page,
            &golden,
            &["config.json", "generation_config.json", "model.safetensors"],
            &json!({ "query_pre_attn_scalar": 99 }),
        )?;
        assert_eq!(page.evaluate("doppler.state.origin.edited && document.getElementById('unapplied').hidden")?, true);
        Ok(())
    });
}
