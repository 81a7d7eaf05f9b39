"""Predictions of what needs no model of language, for the tasks as a model sees them: the label that is most frequent
in training; a logistic regression over the unigrams and bigrams of the input; for scores a regression on how many words
two sentences share; for questions on a passage the stretch of words that stands nearest to the question's words.

An example is what `altup tasks show TASK --json` prints: `{"id", "input", "target"}`.
"""

import collections
import math
import re

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")
NUMBER = re.compile(r"-?\d+\.\d+$")
STOP_WORDS = set(
    """a an and are as at be been but by did do does for from had has have he her his how in is it its more most not of
    on or other she that the their there these they this to was were what when where which who whom whose why will with
    would""".split()
)


def predict(task, train, valid):
    """The predictions for the examples of `valid`, a text each, by the name of the baseline. `task` is a line of
    `altup tasks --json`."""
    for example in train + valid:
        example["parts"] = parts_of(task["template"], example["input"])
    if task["task"] == "squad":
        return {"bag_of_words": answer_by_overlap(train, valid)}
    if all(NUMBER.match(example["target"]) for example in train):
        return {"bag_of_words": score_by_overlap(train, valid)}
    targets = [example["target"] for example in train]
    most = collections.Counter(targets).most_common(1)[0][0]
    return {"majority": [most] * len(valid), "bag_of_words": classify(task, train, targets, valid)}


def parts_of(template, text):
    """The texts that a template such as `mrpc sentence1: {…} sentence2: {…}` was filled with. A text may hold a name of the
    template itself, so that each name is where it comes first behind the one before."""
    found = []
    for name in re.findall(r"\S+: (?={)", template):
        before, _, text = text.partition(name)
        found.append(before.strip())
    return found[1:] + [text]


def words_of(text):
    return [word.lower() for word in WORD.findall(text)]


def parts(example):
    """The sentences of an input, as words."""
    return [words_of(part) for part in example["parts"]]


def grams(words):
    return words + [f"{first} {second}" for first, second in zip(words, words[1:])]


def features(example):
    """Unigrams and bigrams; of two sentences, with whether both have them."""
    sentences = [grams(words) for words in parts(example)]
    if len(sentences) == 1:
        return sentences[0]
    common = set.intersection(*map(set, sentences))
    return [f"{'both' if gram in common else number} {gram}" for number, of in enumerate(sentences) for gram in of]


def classify(task, train, targets, valid):
    """The strength of the regularisation is chosen by cross-validation on `train`, by Matthews' correlation where the task
    is scored by it: by accuracy the best classifier of CoLA is one that always says the same."""
    scoring = "matthews_corrcoef" if task["metrics"] == ["matthews"] else "accuracy"
    pipeline = make_pipeline(
        CountVectorizer(analyzer=features, binary=True, min_df=2), LogisticRegression(solver="liblinear")
    )
    search = GridSearchCV(pipeline, {"logisticregression__C": [0.01, 0.1, 1.0]}, cv=3, scoring=scoring)
    search.fit(train, targets)
    return search.predict(valid).tolist()


def overlap(example):
    """How much two sentences have in common: of their unigrams and of their bigrams, and how their lengths differ."""
    first, second = parts(example)
    shares = [1.0]
    for these, those in ((first, second), (grams(first), grams(second))):
        these, those = set(these), set(those)
        common = len(these & those)
        shares += [common / max(1, len(these | those)), common / max(1, min(len(these), len(those)))]
    content = [set(words) - STOP_WORDS for words in (first, second)]
    shares.append(len(content[0] & content[1]) / max(1, len(content[0] | content[1])))
    shares.append(abs(math.log((1 + len(first)) / (1 + len(second)))))
    return shares


def score_by_overlap(train, valid):
    model = RidgeCV(alphas=[0.01, 0.1, 1.0, 10.0])
    model.fit(np.array([overlap(example) for example in train]), [float(example["target"]) for example in train])
    return [f"{score:.4f}" for score in model.predict(np.array([overlap(example) for example in valid]))]


def answer_by_overlap(train, valid):
    """For each question the stretch of the passage around which most of its words stand, the rarer the better: without
    words of the question, and from one stop word or sign to the next."""
    passages = {example["parts"][1] for example in train}
    counts = collections.Counter(word for passage in passages for word in set(words_of(passage)))
    rarity = {word: math.log(len(passages) / count) for word, count in counts.items()}
    unseen = math.log(len(passages) or 1)
    return [nearest_stretch(example, lambda word: rarity.get(word, unseen)) for example in valid]


WINDOW = 12
LONGEST = 6


def nearest_stretch(example, rarity):
    question, passage = example["parts"]
    wanted = set(words_of(question)) - STOP_WORDS
    words = [(match.group().lower(), match.span()) for match in WORD.finditer(passage)]
    ends = lambda word: word in STOP_WORDS or word in wanted or not word[0].isalnum()
    best, start = (-1.0, ""), None
    for place, (word, _) in enumerate(words + [(".", None)]):
        if not ends(word):
            start = place if start is None else start
        elif start is not None:
            stretch = range(start, min(place, start + LONGEST))
            score = 0.0
            for near in range(max(0, start - WINDOW), min(len(words), place + WINDOW)):
                if words[near][0] in wanted:
                    distance = start - near if near < start else near - place + 1
                    score += rarity(words[near][0]) / (1 + distance / WINDOW)
            text = passage[words[stretch[0]][1][0] : words[stretch[-1]][1][1]]
            best, start = max(best, (score, text), key=lambda pair: pair[0]), None
    return best[1] or passage.split()[0]
