"""Word lists and short facts for the synthetic corpus.  All of it was written for this project."""

# First names with a known pronoun; FEMALE are the ones that take "she".
NAMES = """
    Tom Lily Ben Anna Max Mia Sam Lucy Jack Emma Leo Nora Tim Sara Finn Rosa Hugo Ella Paul Kate
    Omar Zoe Adam Ivy Carl June Noah Ruby Alex Maya Eric Clara Peter Alice Victor Jane Oscar
    Nina Felix Grace
""".split()

FEMALE = set("""
    Lily Anna Mia Lucy Emma Nora Sara Rosa Ella Kate Zoe Ivy June Ruby Maya Clara Alice Jane
    Nina Grace
""".split())

# animal: (sound, legs, where it lives, its young, what it eats)
ANIMALS = {
    "cat": ("meow", 4, "in a house", "kitten", "fish"),
    "dog": ("woof", 4, "in a house", "puppy", "meat"),
    "cow": ("moo", 4, "on a farm", "calf", "grass"),
    "duck": ("quack", 2, "on a pond", "duckling", "bread"),
    "sheep": ("baa", 4, "on a farm", "lamb", "grass"),
    "pig": ("oink", 4, "on a farm", "piglet", "corn"),
    "lion": ("roar", 4, "in the savanna", "cub", "meat"),
    "bear": ("growl", 4, "in the forest", "cub", "honey"),
    "frog": ("ribbit", 4, "near a pond", "tadpole", "flies"),
    "bird": ("tweet", 2, "in a nest", "chick", "seeds"),
    "owl": ("hoot", 2, "in a tree", "owlet", "mice"),
    "horse": ("neigh", 4, "on a farm", "foal", "hay"),
    "mouse": ("squeak", 4, "in a small hole", "pup", "cheese"),
    "bee": ("buzz", 6, "in a hive", "larva", "nectar"),
    "rabbit": ("sniff", 4, "in a burrow", "kit", "carrots"),
    "fox": ("yip", 4, "in the forest", "cub", "berries"),
    "wolf": ("howl", 4, "in the forest", "pup", "meat"),
    "goat": ("bleat", 4, "on a farm", "kid", "leaves"),
    "hen": ("cluck", 2, "on a farm", "chick", "corn"),
    "snake": ("hiss", 0, "in the grass", "hatchling", "eggs"),
    "turtle": ("puff", 4, "near the sea", "hatchling", "leaves"),
    "elephant": ("trumpet", 4, "in the savanna", "calf", "leaves"),
    "monkey": ("chatter", 4, "in the jungle", "infant", "bananas"),
    "penguin": ("squawk", 2, "on the ice", "chick", "fish"),
    "ant": ("tap", 6, "in an anthill", "larva", "crumbs"),
    "spider": ("click", 8, "in a web", "spiderling", "flies"),
    "whale": ("sing", 0, "in the sea", "calf", "krill"),
    "fish": ("blub", 0, "in the water", "fry", "plants"),
}

OBJECTS = """
    ball book kite hat drum lamp box cup key map bell coat rope shoe spoon coin clock doll boat
    scarf whistle basket blanket bottle brush ladder mirror ring stone toy umbrella flute
""".split()

COLORS = """
    red blue green yellow white black brown pink purple orange gray
""".split()

PLACES = """
    park garden forest school beach market kitchen library farm river hill castle village lake
    barn station cave bridge attic museum
""".split()

FOODS = """
    apple banana pear cake bread cheese soup pie carrot plum peach cookie sandwich egg tomato
    potato grape lemon cherry pancake
""".split()

ADJECTIVES = """
    little big happy brave kind clever shy funny lazy quiet young old tiny curious friendly
    sleepy
""".split()

FEELINGS = """
    happy sad tired proud scared surprised excited calm lonely worried
""".split()

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "England": "London",
    "Scotland": "Edinburgh",
    "Ireland": "Dublin",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Poland": "Warsaw",
    "Austria": "Vienna",
    "Hungary": "Budapest",
    "Greece": "Athens",
    "Turkey": "Ankara",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Morocco": "Rabat",
    "India": "Delhi",
    "China": "Beijing",
    "Japan": "Tokyo",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Russia": "Moscow",
    "Canada": "Ottawa",
    "Mexico": "Mexico City",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Argentina": "Buenos Aires",
    "Brazil": "Brasilia",
    "Belgium": "Brussels",
    "Netherlands": "Amsterdam",
    "Switzerland": "Bern",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Nepal": "Kathmandu",
    "Australia": "Canberra",
}

CITIES = sorted(CAPITALS.values())

OPPOSITES = [tuple(pair.split("/")) for pair in """
    big/small hot/cold up/down left/right day/night happy/sad fast/slow old/young new/old
    open/closed full/empty hard/soft light/dark high/low long/short wet/dry early/late
    good/bad rich/poor strong/weak thick/thin loud/quiet clean/dirty near/far first/last
    before/after inside/outside right/wrong true/false easy/difficult heavy/light push/pull
    win/lose start/stop love/hate black/white sweet/sour wide/narrow deep/shallow
    summer/winter
""".split()]

PAST_TENSE = [tuple(pair.split("/")) for pair in """
    go/went eat/ate see/saw run/ran take/took give/gave come/came find/found make/made
    say/said buy/bought think/thought sleep/slept write/wrote read/read sing/sang swim/swam
    drink/drank fly/flew fall/fell know/knew grow/grew break/broke speak/spoke walk/walked
    jump/jumped play/played look/looked help/helped laugh/laughed open/opened cook/cooked
""".split()]

PLURALS = [tuple(pair.split("/")) for pair in """
    cat/cats dog/dogs box/boxes mouse/mice child/children foot/feet tooth/teeth man/men
    woman/women goose/geese sheep/sheep fish/fish leaf/leaves baby/babies city/cities
    knife/knives bus/buses book/books potato/potatoes person/people
""".split()]

CATEGORIES = {
    "fruits": "apple banana pear plum peach grape lemon cherry orange mango",
    "vegetables": "carrot potato tomato onion cabbage pea bean corn leek pumpkin",
    "colors": "red blue green yellow white black brown pink purple orange",
    "animals": "cat dog cow duck sheep pig lion bear frog bird owl horse mouse bee rabbit fox "
    "wolf goat hen snake",
    "tools": "hammer saw drill wrench knife shovel rake axe file brush",
    "instruments": "piano guitar drum flute violin trumpet harp horn cello bell",
    "planets": "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune",
    "shapes": "circle square triangle star heart oval cross cube line ring",
    "clothes": "hat coat shirt sock shoe scarf dress glove belt skirt",
    "drinks": "water milk juice tea coffee cocoa lemonade soda",
}

CATEGORIES = {group: members.split() for group, members in CATEGORIES.items()}
CATEGORIES["cities"] = CITIES[:12]
CATEGORIES["countries"] = list(CAPITALS)[:14]

CATEGORY_SINGULAR = {
    "fruits": "a fruit",
    "vegetables": "a vegetable",
    "colors": "a color",
    "animals": "an animal",
    "tools": "a tool",
    "instruments": "an instrument",
    "planets": "a planet",
    "shapes": "a shape",
    "clothes": "a piece of clothing",
    "drinks": "a drink",
    "cities": "a city",
    "countries": "a country",
}

DAYS = """
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday
""".split()

MONTHS = """
    January February March April May June July August September October November December
""".split()

NUMBER_WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen twenty
""".split()

JOBS = {
    "baker": "bakes bread and cakes",
    "teacher": "teaches children at school",
    "doctor": "helps sick people",
    "farmer": "grows food on a farm",
    "pilot": "flies a plane",
    "cook": "makes food in a kitchen",
    "painter": "paints pictures",
    "driver": "drives a car or a bus",
    "nurse": "takes care of sick people",
    "sailor": "works on a ship",
    "singer": "sings songs",
    "writer": "writes books",
    "gardener": "takes care of plants",
    "builder": "builds houses",
    "dentist": "takes care of teeth",
    "firefighter": "puts out fires",
    "tailor": "makes clothes",
    "librarian": "takes care of books",
}

# (question, answer)
FACTS = [
    (
        "Why is the sky blue?",
        "The sky is blue because the air scatters blue light more than red light.",
    ),
    ("What is the sun?", "The sun is a star. It gives us light and heat."),
    ("What is the moon?", "The moon is a ball of rock that goes around the Earth."),
    ("What is water made of?", "Water is made of hydrogen and oxygen."),
    ("What do plants need to grow?", "Plants need water, light and air to grow."),
    ("What is ice?", "Ice is frozen water."),
    ("What is snow?", "Snow is frozen water that falls from the clouds."),
    ("What is rain?", "Rain is water that falls from the clouds."),
    ("How many days are in a week?", "There are 7 days in a week."),
    ("How many months are in a year?", "There are 12 months in a year."),
    ("How many hours are in a day?", "There are 24 hours in a day."),
    ("How many minutes are in an hour?", "There are 60 minutes in an hour."),
    ("How many seconds are in a minute?", "There are 60 seconds in a minute."),
    ("How many days are in a year?", "There are 365 days in a year."),
    ("What color is grass?", "Grass is green."),
    ("What color is the sky?", "The sky is blue."),
    ("What color is snow?", "Snow is white."),
    ("What color is a banana?", "A banana is yellow."),
    ("What color is a tomato?", "A tomato is red."),
    ("What color is coal?", "Coal is black."),
    ("What is a computer?", "A computer is a machine that works with numbers and words."),
    (
        "What is a language model?",
        "A language model is a program that guesses the next word again and again.",
    ),
    ("What is a token?", "A token is a small piece of text, like a word or a part of a word."),
    (
        "What is an expert in a model?",
        "An expert is a small part of the model that is used only for some tokens.",
    ),
    ("What is a robot?", "A robot is a machine that can move and do work."),
    ("What is the biggest planet?", "Jupiter is the biggest planet."),
    ("What planet do we live on?", "We live on the planet Earth."),
    ("What is the biggest animal?", "The blue whale is the biggest animal."),
    ("What is the fastest land animal?", "The cheetah is the fastest land animal."),
    ("What do bees make?", "Bees make honey."),
    ("What do cows give us?", "Cows give us milk."),
    ("What do hens lay?", "Hens lay eggs."),
    ("What comes after night?", "Day comes after night."),
    ("What season comes after winter?", "Spring comes after winter."),
    ("What season comes after summer?", "Autumn comes after summer."),
    ("What is a friend?", "A friend is a person who likes you and helps you."),
    ("What is music?", "Music is sound that is nice to hear."),
    ("Why do we sleep?", "We sleep so that our body and mind can rest."),
    ("Why do we eat?", "We eat because food gives us energy."),
    ("What is a book?", "A book is many pages with words and pictures."),
    (
        "How do I make tea?",
        "Boil some water. Put the tea in a cup. Pour the hot water into the cup. "
        "Wait three minutes. Then drink it.",
    ),
    (
        "How do I plant a seed?",
        "Dig a small hole. Put the seed in it. Cover it with soil. Give it some water every day.",
    ),
    (
        "How do I make a sandwich?",
        "Take two slices of bread. Put cheese and tomato on one slice. Put the other slice on top. "
        "Now you can eat it.",
    ),
    (
        "How do I fall asleep?",
        "Turn off the light. Lie down and close your eyes. Breathe slowly and think of something "
        "calm.",
    ),
    (
        "What should I do when I am sad?",
        "You can talk to a friend, take a walk or listen to music. It is fine to be sad sometimes.",
    ),
    ("Can you give me some advice?", "Be kind, sleep enough, and take one small step each day."),
    ("Tell me a joke.", "Why did the cat sit on the computer? It wanted to watch the mouse."),
    ("Tell me another joke.", "What do you call a bear with no teeth? A gummy bear."),
    (
        "What is the meaning of life?",
        "I do not know. Maybe it is to be kind and to learn new things.",
    ),
    (
        "Write a short poem.",
        "The sun is high, the sky is blue,\n"
        "the birds all sing a song for you.\n"
        "The night will come, the stars will shine,\n"
        "and all will be both calm and fine.",
    ),
    (
        "Write a poem about the sea.",
        "The sea is wide, the sea is deep,\n"
        "it sings the little fish to sleep.\n"
        "The waves come in, the waves go out,\n"
        "and gulls fly all around about.",
    ),
    (
        "Write a haiku.",
        "Snow falls on the hill.\nA small bird sits on a branch.\nIt waits for the spring.",
    ),
]

# (what the user may say, what the assistant may answer)
SMALL_TALK = [
    (
        ["Hello", "Hello!", "Hi", "Hi!", "Hey", "Hi there", "Hello there!"],
        [
            "Hello! How can I help you?",
            "Hi! What can I do for you?",
            "Hello! It is nice to meet you.",
        ],
    ),
    (
        ["How are you?", "How are you doing?", "How are you today?", "How do you do?"],
        ["I am fine, thank you. How are you?", "I am doing well. How about you?"],
    ),
    (
        ["I am fine.", "I am good.", "I am fine too.", "I feel great."],
        ["That is good to hear.", "I am glad to hear that."],
    ),
    (
        [
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself.",
            "Introduce yourself.",
        ],
        [
            "I am Tiny GLM, a very small language model. I can tell stories and answer simple "
            "questions.",
            "My name is Tiny GLM. I am a very small language model.",
        ],
    ),
    (
        ["What can you do?", "How can you help me?", "Help"],
        ["I can tell stories, count, add numbers, answer simple questions and call tools."],
    ),
    (
        ["Thank you", "Thanks", "Thank you!", "Thanks a lot!", "Thank you very much."],
        ["You are welcome!", "You are welcome! Is there anything else?"],
    ),
    (
        ["Goodbye", "Bye", "Bye!", "See you later.", "Good night."],
        ["Goodbye! Have a nice day.", "Bye! See you soon."],
    ),
    (["Good morning", "Good morning!"], ["Good morning! How can I help you?"]),
    (["Good evening"], ["Good evening! How can I help you?"]),
    (
        ["Are you a human?", "Are you a person?", "Are you real?"],
        ["No, I am not a human. I am a very small language model."],
    ),
    (
        ["How big are you?", "How many parameters do you have?"],
        ["I am very small. I have only a few million parameters."],
    ),
    (
        ["Who made you?", "Where do you come from?"],
        ["I was trained on a small computer with made-up text."],
    ),
    (
        ["Do you like music?", "Do you like cats?", "Do you like me?"],
        ["I am only a program, but I think so."],
    ),
    (["Yes", "Ok", "Okay", "Sure"], ["Great! What would you like to do?"]),
    (["No", "No, thank you."], ["All right. Let me know if you need anything."]),
    (
        ["I am bored.", "I have nothing to do."],
        ["Would you like to hear a story? I can also tell you a joke."],
    ),
    (
        ["I am sad.", "I feel bad.", "I am tired."],
        ["I am sorry to hear that. I hope you feel better soon."],
    ),
    (
        ["asdf", "xyz", "???", "..."],
        ["I am sorry, I do not understand. Can you say it in another way?"],
    ),
]

# (what it does, program)
CODE = [
    ("adds two numbers", "def add(a, b):\n    return a + b"),
    ("multiplies two numbers", "def multiply(a, b):\n    return a * b"),
    ("returns the bigger of two numbers", "def bigger(a, b):\n    return a if a > b else b"),
    ("checks if a number is even", "def is_even(n):\n    return n % 2 == 0"),
    (
        "sums a list",
        "def total(items):\n"
        "    result = 0\n"
        "    for item in items:\n"
        "        result += item\n"
        "    return result",
    ),
    ("reverses a string", "def reverse(text):\n    return text[::-1]"),
    ("says hello", 'def hello(name):\n    print("Hello, " + name)'),
    ("counts to ten", "for i in range(1, 11):\n    print(i)"),
    (
        "computes the factorial",
        "def factorial(n):\n    if n < 2:\n        return 1\n    return n * factorial(n - 1)",
    ),
]

# Sentences that carry no information, for needle and copy tasks.
FILLERS = [
    "The weather is nice today.",
    "Birds sing in the trees.",
    "The river is calm.",
    "People walk in the street.",
    "A dog sleeps in the sun.",
    "The shop opens at nine.",
    "The soup is hot.",
    "Children play in the park.",
    "The train is late again.",
    "The wind is cold.",
    "There is a book on the table.",
    "The flowers smell sweet.",
    "The moon is bright.",
    "A boat sails on the lake.",
    "The old clock is slow.",
    "The bread is fresh.",
    "The cat drinks some milk.",
    "Snow falls on the hill.",
]
