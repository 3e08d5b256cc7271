"""What the `json` adapter reads: templates of descriptions and the values in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """The templates and values of one side; training and held-out share none of them (numbers apart)."""

    templates: Mapping[str, Sequence[str]]
    values: Mapping[str, Sequence[str]]


LEADS = ("", "", "", "{kind}: ", "Here is the {kind}. ", "Note this {kind} down: ", "Record this. ")
EXTRAS = ("", "", "", " That is all I know.", " Please keep this on file.", " Thanks!", " I think that is right.")

TRAINING = Split(
    templates={
        "person": (
            "{name} is a {age}-year-old {job} from {city}.",
            "{name}, {age}, works as {a_job} in {city}.",
            "My neighbour {name} moved to {city} and found work as {a_job}. {name} just turned {age}.",
            "Meet {name}: {job}, {age} years old, living in {city}.",
            "I met {name} in {city}. At {age}, {name} is still {a_job}.",
            "In {city} lives {a_job} called {name}, who is {age}.",
            "{name} is {age}. {name} lives in {city} and is {a_job}.",
            "Born in {city}, {name} became {a_job} and is now {age}.",
            "The new {job} is {name} from {city}, aged {age}.",
            "{name} ({age}) is {a_job} based in {city}.",
            "{name} works as {a_job}.",
            "{name} lives in {city}.",
            "{name} is {age} years old and lives in {city}.",
            "{name}, {a_job}, is {age}.",
        ),
        "product": (
            "The {name} {item} costs {price} euros and comes in {colour}.",
            "For {price} euros you get the {colour} {item} {name}.",
            "We sell {a_item} named {name}. It is {colour} and its price is {price} euros.",
            "{name} is a {colour} {item} for {price} euros.",
            "New in the shop: the {item} {name} in {colour}, only {price} euros.",
            "I bought the {name}, a {colour} {item}, and paid {price} euros.",
            "Our best {item} is the {name}. You pay {price} euros. The colour is {colour}.",
            "Looking for {a_item}? The {colour} {name} is {price} euros.",
            "The {name} is {a_item}. Price: {price} euros.",
            "The {name} {item} is {colour}.",
            "{price} euros is the price of the {name} {item}, which is {colour}.",
        ),
        "event": (
            "The {name} takes place in {city} on {day} and tickets cost {price} euros.",
            "Join us on {day} for the {name} in {city}. Entry is {price} euros.",
            "{city} hosts the {name} on {day}; a ticket is {price} euros.",
            "On {day} there is the {name} in {city}. It costs {price} euros to get in.",
            "Tickets for the {name} in {city} are {price} euros. It starts on {day}.",
            "Don't miss the {name}! {city}, {day}, {price} euros.",
            "The {name} will be held on {day} in {city}.",
            "{name}: {day}, {city}. Admission {price} euros.",
            "We are going to the {name} in {city} on {day} and paid {price} euros each.",
            "The {name} in {city} costs {price} euros.",
        ),
    },
    values={
        "first": (
            "Anna", "Ben", "Carla", "David", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Luca",
            "Maya", "Nils",
            "Olga", "Pavel", "Quentin", "Rosa", "Samir", "Tara", "Umar", "Vera", "Wen", "Ximena", "Yara", "Zoe",
            "Aiko", "Bruno",
            "Chidi", "Dana", "Emil", "Fatima", "George", "Helen", "Ivan", "Julia", "Kofi", "Lena", "Mateo", "Nadia",
        ),
        "last": (
            "Adams", "Berg", "Costa", "Diaz", "Evans", "Fischer", "Gupta", "Hansen", "Ito", "Jansen", "Kaya",
            "Lopez", "Moreau",
            "Novak", "Okafor", "Petrov", "Quinn", "Rossi", "Sato", "Turner", "Usman", "Vogel", "Wagner", "Xu",
            "Young", "Zimmer",
            "Bauer", "Chen", "Dubois", "Eriksen", "Ferrari", "Green", "Haddad", "Ivanova", "Jones", "Kim",
        ),
        "job": (
            "nurse", "teacher", "plumber", "pilot", "lawyer", "baker", "painter", "farmer", "engineer", "waiter",
            "actor",
            "librarian", "electrician", "journalist", "dentist", "gardener", "translator", "carpenter", "chemist",
            "bus driver",
            "firefighter", "cook", "tailor", "accountant", "optician", "photographer", "violinist", "mechanic",
        ),
        "city": (
            "Paris", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Cairo", "Lagos", "Tokyo", "Seoul", "Lima",
            "Boston", "Dallas",
            "Toronto", "Sydney", "Mumbai", "Delhi", "Athens", "Prague", "Warsaw", "Dublin", "Geneva", "Milan",
            "Porto", "Bergen",
            "Nairobi", "Chicago", "Austin", "Leeds", "Lyon", "Hamburg", "Naples",
        ),
        "brand": (
            "Alto", "Brisa", "Corvo", "Delta", "Echo", "Falcon", "Glint", "Halo", "Iris", "Jade", "Krypton", "Luma",
            "Mistral",
            "Nimbus", "Orbit", "Pulse", "Quartz", "Ridge", "Solara", "Titan", "Vento", "Zephyr",
        ),
        "item": (
            "lamp", "backpack", "kettle", "bicycle", "chair", "phone", "jacket", "tent", "watch", "camera",
            "umbrella", "desk",
            "scooter", "blender", "sofa", "helmet", "guitar", "toaster", "laptop", "mug", "suitcase", "printer",
        ),
        "colour": ("red", "blue", "green", "black", "white", "yellow", "grey", "violet", "pink", "brown", "silver"),
        "event_name": (
            "Jazz Night", "Book Fair", "Food Festival", "Spring Market", "Tech Summit", "Film Week", "City Marathon",
            "Wine Tasting",
            "Robot Show", "Garden Party", "Chess Open", "Science Day", "Flower Parade", "Poetry Slam", "Winter Ball",
            "Cheese Fair",
            "Comic Expo", "Opera Gala", "Bike Rally", "Art Biennale", "Kite Festival", "Rock Concert",
        ),
        "month": ("January", "February", "March", "April", "June", "July", "August", "October", "November", "December"),
    },
)  # fmt: skip

HELD_OUT = Split(
    templates={
        "person": (
            "Say hello to {name} from {city}. {name} earns a living as {a_job} and is {age} now.",
            "Our {age}-year-old colleague {name} is {a_job}; the office is in {city}.",
            "{a_job_upper} in {city}, {age} years of age: that is {name}.",
            "You asked about {name}. {age} years old, {a_job}, home is {city}.",
        ),
        "product": (
            "They offer the {name}, {a_item} in {colour}, at {price} euros.",
            "What a nice {item}! It is called {name}, it is {colour} and you can have it for {price} euros.",
            "The {colour} {name} is my favourite {item}, though {price} euros is a lot.",
        ),
        "event": (
            "Mark your calendar: {name}, {city}, on {day}. You need {price} euros for a ticket.",
            "{price} euros gets you into the {name} that {city} is holding on {day}.",
            "See you at the {name} on {day}! We meet in {city}, bring {price} euros.",
        ),
    },
    values={
        "first": ("Arthur", "Bianca", "Cedric", "Dilara", "Ewan", "Freya", "Gustav", "Hana", "Idris", "Johanna", "Leon",
            "Mira"),
        "last": ("Abbott", "Bianchi", "Castro", "Drake", "Engel", "Fontaine", "Grant", "Hoffmann", "Iqbal", "Jensen",
            "Kowalski"),
        "job": ("surgeon", "butcher", "sculptor", "welder", "architect", "florist", "barber", "geologist", "jeweller"),
        "city": ("Lisbon", "Zurich", "Denver", "Krakow", "Osaka", "Bogota", "Helsinki", "Accra", "Glasgow", "Seattle"),
        "brand": ("Aurora", "Comet", "Ember", "Fjord", "Lotus", "Onyx", "Raven", "Sierra"),
        "item": ("drill", "keyboard", "wallet", "piano", "carpet", "drone", "heater", "bottle"),
        "colour": ("purple", "gold", "turquoise", "beige"),
        "event_name": ("Light Festival", "Tango Night", "Design Fair", "Pumpkin Race", "Harbour Run", "Choir Concert"),
        "month": ("May", "September"),
    },
)  # fmt: skip
