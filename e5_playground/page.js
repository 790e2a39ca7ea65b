// Ctrl/Cmd+Enter in a text field runs, as the Run button does.
addEventListener(
  "keydown",
  (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    if (!event.target.matches("textarea, input")) return;
    event.preventDefault();
    event.stopPropagation();
    document.querySelector("#e5-run")?.click();
  },
  true,
);
// The second click of a double-click is no second request, also when the first has been answered already.
addEventListener(
  "click",
  (event) => {
    if (event.detail > 1 && event.target.closest("#e5-run, .e5-example")) {
      event.preventDefault();
      event.stopPropagation();
    }
  },
  true,
);
// Copies the listing beside the button. On plain HTTP beyond this machine browsers have no clipboard: it is selected.
addEventListener("click", async (event) => {
  const button = event.target.closest(".e5-copy");
  if (!button) return;
  const pre = button.parentElement.querySelector("pre");
  try {
    await navigator.clipboard.writeText(pre.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(pre);
    button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
});
