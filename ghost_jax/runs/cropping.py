"""The sentence on prompts that were longer than a model's context, for every report that shows a score."""


def cropping(cropped: int, prompts: int, lost: str = "") -> str:
    """Returns the sentence on cropped prompts, empty for none; `lost` names the part that was lost."""
    if not cropped:
        return ""
    what = f": {lost}" if lost else ""
    return f"{cropped:,} of {prompts:,} prompts were longer than the model's context and lost their beginning{what}."


def cropping_of(score: dict) -> str:
    """Returns the sentences on a score's cropped prompts and free answers; empty where none was cropped."""
    if not score.get("prompts_cropped") and not score.get("matching"):
        return ""
    question = "the instruction and the start of the question"
    first = f"lines of the book, then {question}" if score.get("book") == "open" else question
    # A cloze asks a question once for all its orders.
    prompts = score["n"] if score.get("layout") == "cloze" else sum(map(len, score["predicted"]))
    sentences = [cropping(score.get("prompts_cropped", 0), prompts, first)]
    if free := score.get("matching"):
        lost = "of free answers, the start of the question"
        sentences.append(cropping(free["how"]["prompts_cropped"], score["n"], lost))
    return " ".join(filter(None, sentences))
