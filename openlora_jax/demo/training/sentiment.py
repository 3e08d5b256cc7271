"""`sentiment`: a review in, one label out. Learns from templates; is judged on reviews written by hand."""

import random

from openlora_jax.demo.training.behaviour import Behaviour, Example, pick

LABELS = ("positive", "negative", "neutral")

THINGS = (
    "headphones", "restaurant", "hotel", "film", "novel", "vacuum cleaner", "coffee machine", "jacket", "phone case",
    "mattress", "game", "laptop", "blender", "backpack", "dentist", "museum tour", "concert", "pizza", "bus service",
    "watch", "keyboard", "camera", "hairdresser", "gym", "podcast", "app", "toaster", "tent", "printer", "shampoo",
    "yoga class", "airline", "bakery", "sofa", "bike lock", "sunglasses", "monitor", "running shoes", "tea set",
    "taxi company",
)  # fmt: skip
ASPECTS = (
    "quality", "service", "design", "sound", "price", "battery", "delivery", "support team", "taste", "staff", "plot",
    "build", "packaging", "fit", "location", "interface", "smell", "picture", "size", "finish",
)  # fmt: skip

WORDS = {
    "positive": (
        "wonderful", "excellent", "superb", "fantastic", "lovely", "brilliant", "delightful", "outstanding",
        "perfect",
        "amazing", "great", "impressive", "first-rate", "charming", "top notch", "spotless", "delicious", "beautiful",
    ),
    "negative": (
        "awful", "terrible", "disappointing", "dreadful", "poor", "horrible", "useless", "cheap and flimsy", "broken",
        "a mess", "shoddy", "unacceptable", "rude", "overpriced", "boring", "dirty", "a joke", "unbearable",
    ),
    "neutral": (
        "average", "okay", "acceptable", "ordinary", "standard", "neither good nor bad", "as expected",
        "fine, nothing more",
        "middling", "unremarkable", "so-so", "decent enough", "about what you would expect", "passable",
        "nothing special",
    ),
}  # fmt: skip

SENTENCES = {
    "positive": (
        "I love this {thing}.", "Best {thing} I have ever had.", "I would buy it again in a heartbeat.",
        "Exceeded all my expectations.", "Everyone in the family adores it.", "Worth every penny.",
        "Five stars from me!",
        "I can't stop recommending it to friends.", "It made my whole week.", "I couldn't be happier with it.",
        "We will definitely be back.", "It works like a dream.", "Not a single complaint.", "I was blown away.",
        "It never lets me down.", "I didn't expect it to be this good.", "Finally something that just works.",
        "My old one can't compete with it.", "What a joy to use.", "They fixed my problem in minutes, thank you!",
        "I smiled the whole time.", "It still looks like new after two years.",
    ),
    "negative": (
        "I hate this {thing}.", "Worst {thing} I have ever had.", "It broke after two days.", "I want my money back.",
        "Save your money and avoid it.", "Nobody answered my emails.", "I regret buying it.",
        "A complete waste of time.",
        "It never worked properly.", "I would give zero stars if I could.", "We will never come back.",
        "It let me down when I needed it.", "I expected much more for this money.", "It went straight into the bin.",
        "They ruined our evening.", "I had to return it twice.", "Not worth half of what it costs.",
        "I nearly fell asleep.",
        "It isn't good at all.", "It stopped working within a week.", "Nothing about it is as advertised.",
        "They kept us waiting for two hours and didn't even apologise.",
    ),
    "neutral": (
        "The {thing} is what it is.", "It does the job.", "No strong feelings about this {thing}.",
        "I have seen better and worse.",
        "It arrived on Tuesday in a plain box.", "Some parts are good, others are not.", "I use it now and then.",
        "It comes in three colours.", "Could be better, could be worse.", "Three out of five.",
        "I might keep it, I might not.",
        "It has a few strengths and a few weaknesses.", "The manual has twelve pages.",
        "I bought it for my office last month.",
        "It is about the same as my old one.", "Good in some ways and bad in others.", "I have no opinion on it yet.",
        "It is made in Poland and weighs two kilos.", "You get what you pay for, no more and no less.",
        "I neither like nor dislike it.", "It opens at nine and closes at five.",
        "Nothing to praise and nothing to complain about.",
    ),
}  # fmt: skip

FRAMES = (
    "The {aspect} of this {thing} is {word}.", "This {thing} is {word}.", "The {thing} was {word}.", "{Word}!",
    "The {aspect} is {word}, and the {aspect2} is {word2}.", "I found the {aspect} {word}.", "Honestly, {word}.",
    "We tried the {thing} on Sunday and it was {word}.", "{Word} {thing}, {word2} {aspect}.",
    "My {thing} is simply {word}.",
)  # fmt: skip

HELD_OUT = {
    "positive": (
        "The waiter remembered our anniversary and brought us a cake. Unforgettable night!",
        "After ten years of back pain, this chair changed my life.",
        "My kids beg to go back to this playground every weekend.",
        "Setup took thirty seconds and the screen is gorgeous.",
        "I cried happy tears at the ending. A masterpiece.",
        "So soft and warm, I'm ordering another one for my mother.",
        "The guide was funny, patient and knew everything about the old town.",
        "Crystal clear calls even on a windy street. I'm thrilled.",
        "Best ramen outside of Japan, hands down.",
        "This little lamp brightens up my desk and my mood.",
        "They replaced the faulty part for free the very next day. Respect!",
        "The trail is stunning and the view from the top is breathtaking.",
        "I finished it in one night because I could not put it down.",
    ),
    "negative": (
        "The zipper tore off the first time I used it.",
        "Cold soup, sticky tables and a bill that was wrong twice.",
        "The room smelled of smoke and the shower leaked all night.",
        "It crashes every time I open a file. Avoid.",
        "I fell asleep halfway through and so did my wife.",
        "The seller ignored me and kept my deposit.",
        "My skin burned for two days after using this cream.",
        "Four hours late and they lost my suitcase.",
        "The colours faded after a single wash. What a rip-off.",
        "The instructions make no sense and half of the screws were missing.",
        "Loud, slow and it leaks oil on my kitchen floor.",
        "The doctor was impatient and didn't listen to a word I said.",
        "Such a letdown after the wonderful first season.",
    ),
    "neutral": (
        "It's a lamp. It gives light.",
        "The book has 320 pages and was published in 2011.",
        "The food was good but the room was noisy, so overall average.",
        "Not bad, not great, just a regular burger.",
        "I picked it up at the station on my way to work.",
        "It does what the label says, nothing more.",
        "Half of the songs are nice, the other half I skip.",
        "The package contains two cables and an adapter.",
        "I am still undecided about this chair.",
        "An ordinary hotel for an ordinary business trip.",
        "The shop is on the corner, next to the post office.",
        "Okay for the price, I guess.",
        "Some will like it, some won't. I am somewhere in between.",
    ),
}


def make_review(rng: random.Random, label: str) -> str:
    """One to three sentences of the same sentiment about one thing."""
    thing, aspects = pick(rng, THINGS), rng.sample(ASPECTS, 2)
    sentences = []
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        template = pick(rng, FRAMES if rng.random() < 0.5 else SENTENCES[label])
        word, word2 = rng.sample(WORDS[label], 2)
        text = template.format(
            thing=thing, aspect=aspects[0], aspect2=aspects[1], word=word, word2=word2, Word=word.capitalize()
        )
        sentences.append(text)
    return " ".join(dict.fromkeys(sentences))


def make_training(rng: random.Random) -> list[Example]:
    return [Example(f"Review: {make_review(rng, label)}", label) for _ in range(150) for label in LABELS]


def make_held_out(rng: random.Random) -> list[Example]:
    return [Example(f"Review: {review}", label) for label in LABELS for review in HELD_OUT[label]]


def is_right(example: Example, text: str) -> bool:
    """The whole answer is the right label and nothing else."""
    return text.strip() == example.answer


SENTIMENT = Behaviour(
    name="sentiment",
    make_training=make_training,
    make_held_out=make_held_out,
    is_right=is_right,
    instruction="Answer with exactly one word, the sentiment of the review: positive, negative or neutral.",
    max_new_tokens=8,
    lora={"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]},
)
