"""The EAGLE layer with its auxiliary hidden states, and three ways to read a shortlist's rows."""

from pathlib import Path

from drawing.svg import SMALLEST, Drawing


def draw_layer(folder: Path) -> None:
    """Draws the draft's layer beside the target that it reads."""
    drawing = Drawing(
        "layer", 346, "The draft's layer and what it reads",
        "The outputs of a low, a middle and a high layer of the target are concatenated and "
        "projected to one state. The draft's single layer reads this state and the embedding of "
        "the next token side by side. Its output goes through the target's own LM head, and is "
        "the state of the next draft step.",
        "layer",
    )  # fmt: skip
    drawing.text(66, 18, "target", bold=True)
    names = {0: "embedding", 1: "layer: low", 2: "…", 3: "layer: middle", 4: "…", 5: "layer: high"}
    for number, name in names.items():
        y = 254 - 38 * number
        fill = "phase-verify" if name.startswith("layer") else "card"
        drawing.label(8, y, 116, 24, name, fill)
        if number:
            drawing.line([(66, y + 38), (66, y + 25)], arrow=True)
    drawing.label(8, 26, 116, 24, "LM head", "phase-target")
    drawing.line([(66, 64), (66, 51)], arrow=True)
    drawing.text(66, 298, "token t", size=SMALLEST, fill="soft")
    for number in (1, 3, 5):  # the auxiliary hidden states
        y = 254 - 38 * number + 12
        drawing.line([(124, y), (146, y)], colour="phase-target")
    drawing.line([(146, 76), (146, 228)], colour="phase-target")
    drawing.line([(146, 205), (162, 205)], colour="phase-target", arrow=True)
    drawing.label(164, 186, 62, 38, "fc\n(fusion)", "phase-draft_head", size=SMALLEST)
    drawing.lines(158, 240, "3 D → D: the\nstate of t", size=SMALLEST, anchor="start", fill="soft")
    drawing.text(322, 18, "draft", bold=True)
    drawing.label(252, 114, 140, 34, "one decoder layer", "phase-draft_head")
    drawing.line([(226, 205), (284, 205), (284, 150)], arrow=True)
    drawing.label(308, 236, 84, 38, "embedding\nof token t+1", "card", size=SMALLEST)
    drawing.line([(350, 236), (350, 150)], arrow=True)
    drawing.text(317, 176, "side by", size=SMALLEST, fill="soft")
    drawing.text(317, 190, "side", size=SMALLEST, fill="soft")
    drawing.label(252, 26, 140, 34, "LM head, the target's", "phase-target", size=SMALLEST)
    drawing.line([(322, 114), (322, 62)], arrow=True)
    drawing.text(330, 92, "q of t+2", size=SMALLEST, anchor="start")
    drawing.line(
        [(252, 131), (240, 131), (240, 203)], colour="phase-draft", dashed=True, arrow=True
    )
    drawing.lines(8, 320, "blue: of the target; orange: of the draft. Dashed: at the next\n"
                  "draft step the layer's own output is the state.", size=SMALLEST,
                  anchor="start", fill="soft")  # fmt: skip
    drawing.write(folder)


def draw_packing(folder: Path) -> None:
    """Draws a head, the rows of a shortlist where they are, and a packed copy of them."""
    chosen, count = [1, 4, 5, 9, 13, 14], 16
    drawing = Drawing(
        "packing", 250, "Reading the rows of a shortlist",
        "Sixteen rows of a head, of which six are on a shortlist. Gathered, they are read where "
        "they are, in four separate runs. Packed, they lie one after the other in a copy that "
        "is kept up to date: one added row takes the slot of a removed one.",
        [chosen, count],
    )  # fmt: skip
    drawing.text(8, 16, "the head: V rows in memory", anchor="start", bold=True)
    for row in range(count):
        fill = "phase-draft_head" if row in chosen else "card"
        drawing.label(8 + 24 * row, 26, 22, 30, str(row), fill,
                      size=SMALLEST)  # fmt: skip
    drawing.text(8, 84, "gather: read each row where it is", anchor="start", bold=True)
    for row in chosen:
        drawing.line([(19 + 24 * row, 58), (19 + 24 * row, 70)], colour="phase-draft", arrow=True)
    drawing.text(8, 102, "scattered reads, at a fraction of the streaming speed", size=SMALLEST,
                 anchor="start", fill="soft")  # fmt: skip
    drawing.text(8, 134, "pack: a contiguous copy", anchor="start", bold=True)
    for slot, row in enumerate(chosen):
        drawing.label(8 + 24 * slot, 144, 22, 30, str(row), "phase-draft_head", size=SMALLEST)
    drawing.lines(164, 156, "one stream at full speed,\nwhile the copy is right", size=SMALLEST,
                  anchor="start", fill="soft")  # fmt: skip
    drawing.text(8, 202, "an id leaves (9), another comes (7)", anchor="start", bold=True)
    for slot, row in enumerate([1, 4, 5, 7, 13, 14]):
        drawing.label(8 + 24 * slot, 212, 22, 30, str(row),
                      "accepted" if row == 7 else "phase-draft_head", size=SMALLEST)  # fmt: skip
    drawing.lines(164, 224, "one row is copied into the slot\nthat became free", size=SMALLEST,
                  anchor="start", fill="soft")  # fmt: skip
    drawing.write(folder)
