"""Prompts are compared by words, or by characters in scripts without spaces between words."""

# ruff: noqa: RUF001 - punctuation of other languages
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armo_ray.curate.word_split import is_as_long, ngrams, readable, shingles, words, words_and_signs
from tests.curate.test_mine import mine
from tests.support.synthetic_outputs import score_synthetically

# A question, the same question with a small change, and an unrelated question in the same language.
TWINS = {
    "english": (
        "The ferry to the northern islands leaves at seven every morning except on Sundays, and a return ticket costs "
        "twelve crowns for adults and five for children. How much does a family of four pay for a day trip there and "
        "back?",
        ("twelve", "thirteen"),
        "Explain in simple words why bread dough rises when it is left in a warm kitchen for an hour, what would "
        "happen in a cold one, and how a baker can tell that it has stood long enough.",
    ),
    "german": (
        "Die Fähre zu den nördlichen Inseln fährt jeden Morgen um sieben Uhr ab, außer sonntags, und eine "
        "Rückfahrkarte kostet zwölf Kronen für Erwachsene und fünf für Kinder. Wie viel zahlt eine Familie mit vier "
        "Personen für den Ausflug?",
        ("zwölf", "dreizehn"),
        "Erkläre in einfachen Worten, warum Brotteig aufgeht, wenn er eine Stunde lang in einer warmen Küche "
        "steht, und was in einer kalten geschehen würde.",
    ),
    "russian": (
        "Паром на северные острова отходит каждое утро в семь часов, кроме воскресенья, а обратный билет стоит "
        "двенадцать крон для взрослых и пять для детей. Сколько заплатит семья из четырёх человек за поездку туда и "
        "обратно в один день?",
        ("двенадцать", "тринадцать"),
        "Объясни простыми словами, почему хлебное тесто поднимается, если оставить его на час в тёплой кухне, и что "
        "случилось бы в холодной.",
    ),
    "arabic": (
        "تغادر العبارة إلى الجزر الشمالية في الساعة السابعة كل صباح ما عدا يوم الأحد وتبلغ تكلفة تذكرة الذهاب والعودة "
        "اثني عشر دينارا للكبار وخمسة للصغار فكم تدفع عائلة من أربعة أفراد مقابل رحلة يوم واحد ذهابا وإيابا",
        ("للصغار", "للأطفال"),
        "اشرح بكلمات بسيطة لماذا يرتفع عجين الخبز عندما يترك ساعة في مطبخ دافئ وماذا يحدث له في مطبخ بارد",
    ),
    "hindi": (
        "उत्तरी द्वीपों के लिए नाव रविवार को छोड़कर हर सुबह सात बजे निकलती है और आने जाने का टिकट बड़ों के लिए बारह रुपये और "
        "बच्चों के लिए पाँच रुपये का है तो चार लोगों का परिवार एक दिन की यात्रा के लिए कितना देगा",
        ("बारह", "तेरह"),
        "सरल शब्दों में समझाइए कि गरम रसोई में एक घंटे रखने पर रोटी का आटा क्यों फूलता है और ठंडी रसोई में क्या होगा",
    ),
    "chinese": (
        "开往北部岛屿的渡轮除星期日外每天早上七点出发，成人往返票价为十二元，儿童为五元。一个四口之家当天往返一共要付多少钱？请写出计算过程。",
        ("十二", "十三"),
        "请用简单的话解释一下，为什么面团在温暖的厨房里放上一小时会发起来，而在寒冷的地方却不会有同样的变化。",
    ),
    "japanese": (
        "北の島々へ向かうフェリーは日曜日を除いて毎朝七時に出発し、往復切符は大人が十二クローネ、子どもが五クローネです。"
        "四人家族が日帰りで往復すると全部でいくら払うことになりますか。",
        ("十二", "十三"),
        "暖かい台所に一時間置いておくとパン生地がふくらむのはなぜか、寒い場所ではどうなるのかを、やさしい言葉で説明してください。",
    ),
    "thai": (
        "เรือข้ามฟากไปหมู่เกาะทางเหนือออกเดินทางเวลาเจ็ดโมงเช้าทุกวันยกเว้นวันอาทิตย์ตั๋วไปกลับราคาสิบสองบาทสำหรับผู้ใหญ่และห้าบาทสำหรับเด็ก"
        "ครอบครัวสี่คนต้องจ่ายเท่าไรสำหรับการเดินทางไปกลับในวันเดียว",
        ("สิบสอง", "สิบสาม"),
        "ช่วยอธิบายด้วยคำง่ายๆว่าทำไมแป้งขนมปังจึงพองขึ้นเมื่อวางไว้ในครัวที่อบอุ่นหนึ่งชั่วโมงและจะเกิดอะไรขึ้นในครัวที่เย็น",
    ),
    "lao": (
        "ເຮືອຂ້າມຟາກໄປໝູ່ເກາະທາງເໜືອອອກເດີນທາງເວລາເຈັດໂມງເຊົ້າທຸກມື້ຍົກເວັ້ນວັນອາທິດປີ້ໄປກັບລາຄາສິບສອງກີບສຳລັບຜູ້ໃຫຍ່ແລະຫ້າກີບສຳລັບເດັກນ້ອຍ"
        "ຄອບຄົວສີ່ຄົນຕ້ອງຈ່າຍເທົ່າໃດສຳລັບການເດີນທາງໄປກັບໃນມື້ດຽວ",
        ("ສິບສອງ", "ສິບສາມ"),
        "ຊ່ວຍອະທິບາຍດ້ວຍຄຳງ່າຍໆວ່າເປັນຫຍັງແປ້ງເຂົ້າຈີ່ຈຶ່ງຟູຂຶ້ນເມື່ອວາງໄວ້ໃນເຮືອນຄົວທີ່ອົບອຸ່ນໜຶ່ງຊົ່ວໂມງ",
    ),
    "khmer": (
        "សាឡាងទៅកោះភាគខាងជើងចេញដំណើរនៅម៉ោងប្រាំពីរព្រឹករាល់ថ្ងៃលើកលែងតែថ្ងៃអាទិត្យសំបុត្រទៅមកមានតម្លៃដប់ពីររៀលសម្រាប់មនុស្សពេញវ័យនិងប្រាំរៀលសម្រាប់កុមារ"
        "តើគ្រួសារមានគ្នាបួននាក់ត្រូវបង់ប៉ុន្មានសម្រាប់ការធ្វើដំណើរទៅមកក្នុងមួយថ្ងៃ",
        ("ដប់ពីរ", "ដប់បី"),
        "សូមពន្យល់ដោយពាក្យសាមញ្ញថាហេតុអ្វីបានជាម្សៅនំប៉័ងឡើងនៅពេលទុកក្នុងផ្ទះបាយក្តៅរយៈពេលមួយម៉ោង",
    ),
    "burmese": (
        "မြောက်ပိုင်းကျွန်းများသို့သွားသောကူးတို့သင်္ဘောသည်တနင်္ဂနွေနေ့မှအပနေ့စဉ်နံနက်ခုနစ်နာရီတွင်ထွက်ခွာပြီးအသွားအပြန်လက်မှတ်သည်လူကြီးအတွက်ဆယ့်နှစ်ကျပ်"
        "ကလေးအတွက်ငါးကျပ်ဖြစ်သည်မိသားစုလေးယောက်သည်တစ်နေ့တည်းအသွားအပြန်အတွက်ဘယ်လောက်ပေးရမလဲ",
        ("ဆယ့်နှစ်", "ဆယ့်သုံး"),
        "ပေါင်မုန့်ဂျုံစိမ်းကိုနွေးသောမီးဖိုချောင်တွင်တစ်နာရီထားလျှင်အဘယ်ကြောင့်ဖောင်းကြွလာသည်ကိုရိုးရှင်းသောစကားလုံးများဖြင့်ရှင်းပြပါ",
    ),
}
SPACELESS = ["chinese", "japanese", "thai", "lao", "khmer", "burmese"]


def twins(folder: Path) -> tuple[Path, dict[str, list[str]]]:
    """Scores, and the prompts of every language: a text, a near-duplicate of it, and an unrelated text."""
    prompts = {name: [text, text.replace(*change), other] for name, (text, change, other) in TWINS.items()}
    rows = [{"prompt": p, "responses": ["one", "two"]} for texts in prompts.values() for p in texts]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return score_synthetically(folder / "scores", folder / "in.jsonl"), prompts


def test_one_of_two_near_duplicates_is_kept_in_every_language_and_unrelated_prompts_stay(
    tmp_path: Path,
) -> None:
    scores, prompts = twins(tmp_path)
    kept = {pair["prompt"][0]["content"] for pair in mine(scores, tmp_path / "a", near_duplicates=0.8)}
    for name, (text, twin, other) in prompts.items():
        assert len({text, twin}) == 2
        assert (name, len({text, twin} & kept), other in kept) == (name, 1, True)
    assert "by characters" in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize("suffix", ["jsonl", "txt"])
def test_a_benchmark_is_found_in_prompts_that_wrap_it_in_every_language(suffix: str, tmp_path: Path) -> None:
    scores, prompts = twins(tmp_path)
    # a part of the question between other words of its language, with spaces and joiners that mean nothing
    parts = {name: texts[0][len(texts[0]) // 8 : -len(texts[0]) // 5] for name, texts in prompts.items()}
    inside = {n: f"{t[2][:9]}{parts[n]}{t[2][9:18]}" for n, t in prompts.items() if n in SPACELESS}
    wrapped = {n: inside.get(n, f"{t[2]} {parts[n].partition(' ')[2]}") for n, t in prompts.items()}
    wrapped |= {n: wrapped[n][:40] + "\u200b" + wrapped[n][40:] for n in ("khmer", "thai")}
    file = tmp_path / f"bench.{suffix}"
    lines = [t if suffix == "txt" else json.dumps({"question": [t]}) for t in wrapped.values()]
    file.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    pairs = mine(scores, tmp_path / "a", decontaminate=[str(file)])
    left = {pair["prompt"][0]["content"] for pair in pairs}
    assert left.isdisjoint(texts[0] for texts in prompts.values())
    reported = [
        json.loads(line) for line in (tmp_path / "a" / "contaminated.jsonl").read_text("utf-8").splitlines()
    ]
    assert any(prompts["chinese"][0].replace("，", "").find(entry["ngram"]) > 0 for entry in reported)


def test_unrelated_texts_of_one_language_do_not_contaminate_each_other(tmp_path: Path) -> None:
    scores, prompts = twins(tmp_path)
    file = tmp_path / "bench.txt"
    file.write_text("".join(f"{TWINS[name][2]}\n" for name in TWINS), "utf-8")
    left = {p["prompt"][0]["content"] for p in mine(scores, tmp_path / "a", decontaminate=[str(file)])}
    assert left == {text for texts in prompts.values() for text in texts[:2]}


@given(st.text(st.characters(max_codepoint=0x0DFF)), st.integers(1, 5))
def test_scripts_with_spaces_are_split_into_words(text: str, size: int) -> None:
    plain = re.findall(r"\w+", text.lower())
    assert words(text) == plain
    assert words_and_signs(text) == re.findall(r"\w+|[^\w\s]", text.lower())
    expected = [" ".join(plain[i : i + size]) for i in range(max(len(plain) - size, 0) + 1)] if plain else []
    assert list(ngrams(plain, size)) == list(shingles(plain, size)) == expected
    assert all(is_as_long(ngram, size) == (len(plain) >= size) for ngram in expected)


def test_characters_keep_their_marks_and_are_shorter_than_words() -> None:
    assert words("Tokyo東京タワー 2 本!") == ["tokyo", "東", "京", "タ", "ワ", "ー", "2", "本"]
    assert words("ที่นี่") == ["ที่", "นี่"]
    assert words("ខ្មែរ") == ["ខ្", "មែ", "រ"]
    assert words("ＡＢＣ中") == words("abc 中")  # the same in full width
    assert list(ngrams(words("a 中文字"), 2)) == ["a 中 文"]
    assert list(ngrams(words("中文字符集"), 2)) == ["中 文 字 符", "文 字 符 集"]
    assert (is_as_long("中 文 字", 2), is_as_long("中 文 字 符", 2)) == (False, True)
    assert readable("a 中 文 b") == "a 中文 b"
