for (const section of document.querySelectorAll(".answers")) {
  const box = section.querySelector("input[type=search]");
  if (!box) continue;
  box.closest("label").hidden = false;
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const question of section.querySelectorAll(".question")) {
      const text = question.textContent.toLowerCase();
      question.hidden = !words.every((word) => text.includes(word));
    }
  });
}
