"""Everyday sentences from a grammar of some 10^9: activities, events, news, questions, opinions.

Dictionaries and software descriptions contain few of these. Many sentences differ by one word on purpose: they show
the model how each word changes the meaning.
"""

import random
from collections.abc import Iterator

from training.grammar import Grammar, capitalize

RULES = {
    "TEXT": "SCENE|SCENE|SCENE|SCENE|ANIMAL|THING|NEWS|NEWS|NEWS|HEADLINE|HEADLINE|ASK|ASK|ASK|OPINION|OPINION|"
    "FACT|ADVICE",
    # Image captions.
    "SCENE": "A PERSON is DOING.|A PERSON is DOING PLACE.|The PERSON DID.|GROUP are DOING.|GROUP are DOING PLACE.|"
    "A PERSON WEARING is DOING.|A PERSON DOING PLACE.|A ADJ PERSON is DOING.|Someone is DOING.|"
    "The PERSON is not DOING.|A PERSON and a PERSON are DOING PLACE.|There is a PERSON DOING PLACE.|"
    "A PERSON is DOING while a PERSON is DOING.|NUMBER PEOPLE are DOING.|The PERSON started DOING.|"
    "A PERSON is about to DO.|Nobody is DOING.|GROUP were seen DOING PLACE.|A PERSON DOES PLACE.",
    "PERSON": "man|man|woman|woman|boy|girl|child|baby|person|lady|guy|kid|teenager|toddler|cook|chef|doctor|nurse|"
    "teacher|student|farmer|soldier|policeman|firefighter|musician|singer|guitarist|drummer|dancer|cyclist|surfer|"
    "skier|swimmer|runner|climber|football player|tennis player|baseball player|waiter|carpenter|mechanic|painter|"
    "tourist|worker|old man|old woman|young man|young woman|little boy|little girl|bride|grandmother|father|mother",
    "PEOPLE": "men|women|boys|girls|children|people|kids|students|soldiers|friends|players|dancers|workers|tourists",
    "GROUP": "A group of PEOPLE|Two PEOPLE|Three PEOPLE|Several PEOPLE|Some PEOPLE|Many PEOPLE|A crowd of people|"
    "A couple|A family|The PEOPLE|A team of PEOPLE",
    "NUMBER": "Two|Three|Four|Five|Six|Ten|A dozen",
    "ADJ": "young|old|tall|smiling|bearded|tired|happy|blond|barefoot|thin|bald|busy|sleepy|laughing",
    "COLOR": "red|blue|green|black|white|yellow|pink|orange|purple|brown|grey",
    "WEARING": "in a COLOR GARMENT|wearing a COLOR GARMENT|with a COLOR GARMENT|in COLOR|wearing glasses|"
    "with long hair",
    "GARMENT": "shirt|jacket|hat|dress|coat|helmet|sweater|scarf|uniform|cap|swimsuit|suit|apron",
    "DOING": "CUTTING FOOD|CUTTING a FRUIT|cooking FOOD|eating FOOD|eating a FRUIT|playing GAME|playing INSTRUMENT|"
    "riding RIDE|driving a VEHICLE|washing OBJECT|carrying OBJECT|holding OBJECT|throwing a BALL|kicking a BALL|"
    "catching a BALL|reading a book|reading a newspaper|writing a letter|drinking DRINK|pouring DRINK into a cup|"
    "talking on the phone|talking to a PERSON|looking at OBJECT|taking a picture|singing|singing a song|dancing|"
    "running|walking|swimming|sleeping|laughing|crying|smiling|waving|jumping|climbing a HIGH|sitting on SEAT|"
    "standing near OBJECT|fishing|painting a picture|drawing|watching television|typing on a computer|"
    "putting on makeup|brushing ANIMAL_OBJECT|feeding ANIMAL_OBJECT|petting ANIMAL_OBJECT|walking ANIMAL_OBJECT|"
    "opening a THING_OPEN|closing a THING_OPEN|fixing OBJECT|building a house|cleaning OBJECT|sweeping the floor|"
    "lifting weights|doing push-ups|boxing|wrestling|practicing karate|shooting a gun|shooting a bow|juggling|"
    "playing with ANIMAL_OBJECT|playing chess|playing cards|skiing|skateboarding|surfing|ice skating|diving|"
    "crossing the street|waiting for a bus|shopping|buying FOOD|selling FOOD|mixing ingredients in a bowl|"
    "stirring a pot|frying an egg|boiling water|baking a cake|breaking an egg|adding salt to FOOD|folding paper|"
    "planting flowers|mowing the lawn|chopping wood|combing her hair|applying lipstick|tying a shoe|kissing|hugging",
    "CUTTING": "cutting|slicing|peeling|chopping",
    "FOOD": "meat|bread|cheese|rice|pasta|fish|chicken|vegetables|pizza|a sandwich|salad|soup|beef|shrimp|tofu|"
    "butter|potatoes|carrots|garlic|cookies|ice cream|noodles|bacon|mushrooms",
    "FRUIT": "apple|tomato|cucumber|banana|pepper|potato|lemon|melon|mango|carrot|pineapple|peach|pumpkin",
    "DRINK": "water|coffee|tea|beer|wine|milk|juice|soda",
    "GAME": "football|soccer|basketball|tennis|baseball|golf|volleyball|hockey|a video game|table tennis|rugby",
    "INSTRUMENT": "a guitar|the guitar|a piano|the piano|a violin|the drums|a flute|a trumpet|a keyboard|a cello|"
    "a saxophone|a harp|an accordion|a banjo",
    "RIDE": "a bicycle|a horse|a motorcycle|a skateboard|a scooter|an elephant|a camel|a bus|a train|a wave|"
    "a roller coaster",
    "VEHICLE": "car|truck|bus|tractor|van|taxi|boat|race car|motorcycle|train",
    "OBJECT": "a car|a box|a bag|a dog|a baby|a chair|a table|a bicycle|a camera|a bottle|a knife|an umbrella|"
    "a plate|a window|a computer|a phone|a gun|a flag|a flower|a toy|a mirror|clothes|dishes|a basket|a suitcase|"
    "a book",
    "BALL": "ball|football|baseball|basketball|frisbee|stone|stick|snowball",
    "HIGH": "tree|ladder|rope|mountain|wall|rock|fence|cliff|hill",
    "SEAT": "a bench|a chair|a couch|the grass|the floor|a horse|the stairs|a rock|a bed|the beach",
    "THING_OPEN": "door|window|box|bottle|can|bag|book|package|jar|drawer",
    "ANIMAL_OBJECT": "a dog|a cat|a horse|a puppy|a kitten|the birds|a cow|a rabbit|the fish|a monkey",
    "PLACE": "in the park|on the beach|in the kitchen|on the street|in a field|in the water|on a stage|"
    "in front of a house|in the snow|in the rain|at home|in a restaurant|on a mountain|in a room|near a lake|"
    "by the river|in the woods|on the sidewalk|in a garden|at a table|on a boat|in a crowd|at a party|in the city|"
    "in a store|on a bridge|next to a car|under a tree|outside|at night|in the pool|at school|at the airport|"
    "in the desert|on the grass",
    "DO": "eat FOOD|cook FOOD|play GAME|play INSTRUMENT|ride RIDE|drive a VEHICLE|wash OBJECT|carry OBJECT|"
    "throw a BALL|kick a BALL|read a book|drink DRINK|sing a song|dance|run|swim|sleep|climb a HIGH|fix OBJECT|"
    "clean OBJECT|jump|open a THING_OPEN|build a house|buy OBJECT|sell OBJECT|paint a picture|take a picture|"
    "bake a cake",
    "DID": "ate FOOD|cooked FOOD|played GAME|played INSTRUMENT|rode RIDE|drove a VEHICLE|washed OBJECT|"
    "carried OBJECT|threw a BALL|kicked a BALL|read a book|drank DRINK|sang a song|danced|ran away|"
    "swam across the river|slept|climbed a HIGH|fixed OBJECT|cleaned OBJECT|jumped into the water|"
    "opened a THING_OPEN|built a house|bought OBJECT",
    "DOES": "eats FOOD|cooks FOOD|plays GAME|plays INSTRUMENT|rides RIDE|drives a VEHICLE|carries OBJECT|"
    "holds OBJECT|throws a BALL|kicks a BALL|reads a book|drinks DRINK|sings|dances|runs|swims|sleeps|climbs a HIGH|"
    "jumps|poses|sits on SEAT|stands|walks|laughs|looks at OBJECT",
    "ANIMAL": "A BEAST is ACTING.|A COLOR BEAST is ACTING PLACE.|The BEAST is ACTING.|Two BEASTs are ACTING.|"
    "A BEAST and a BEAST are ACTING.|A BEAST ACTING PLACE.|A COLOR and COLOR BEAST is ACTING.|"
    "The BEAST is not ACTING.",
    "BEAST": "dog|dog|cat|horse|puppy|kitten|cow|monkey|panda|lion|tiger|elephant|bear|rabbit|sheep|goat|duck|bird|"
    "squirrel|turtle|hamster|wolf|deer|pig|lemur|parrot",
    "ACTING": "running|sleeping|eating|playing|jumping|swimming|barking|drinking water|chasing a ball|sitting|"
    "standing|lying on the floor|eating grass|looking at the camera|climbing a tree|chewing a bone|walking|"
    "running through the snow|carrying a stick|playing with a toy|catching a frisbee|fighting|hiding|rolling over|"
    "licking a bowl",
    "THING": "A COLOR VEHICLE is parked PLACE.|A VEHICLE is driving down the road.|A plane is ROUTE.|"
    "A train is ROUTE.|A COLOR VEHICLE and a COLOR VEHICLE.|A close-up of OBJECT.|A COLOR bird on a branch.|"
    "OBJECT is on the table.|A view of a SIGHT.|A SIGHT with a SIGHT in the background.|"
    "An empty ROOM with a COLOR chair.|A ROOM with a table.",
    "ROUTE": "taking off|landing|arriving at the station|flying in the sky|crossing a bridge|passing by|standing still",
    "SIGHT": "mountain|lake|city|bridge|church|river|castle|beach|forest|harbor|tower|train station|village|waterfall",
    "ROOM": "kitchen|living room|bedroom|bathroom|office|classroom|garage|hall",
    # News.
    "NEWS": "The LEADER of NATION said on DAY that the country would ACT.|NATION's LEADER VISITED NATION on DAY.|"
    "KILLED people were killed when EVENT in NATION on DAY, officials said.|"
    "Police said KILLED people were injured when EVENT.|Shares of the FIRM rose PERCENT percent on DAY.|"
    "Shares of the FIRM fell PERCENT percent on DAY.|The FIRM said it would ACT_FIRM.|"
    "The FIRM reported a profit of PERCENT million dollars in the QUARTER quarter.|"
    "The INDEX fell PERCENT points to close lower on DAY.|The INDEX rose PERCENT points to close higher on DAY.|"
    "A court in NATION OUTCOME a former MINISTER on DAY.|The government of NATION ACTED after EVENT.|"
    "Rescuers searched for survivors after EVENT in NATION.|Voters in NATION went to the polls on DAY.|"
    "Talks between NATION and NATION ENDED on DAY.|Researchers found that FOODS may DISEASE_EFFECT.|"
    "The TEAM beat the TEAM on DAY.|The TEAM lost to the TEAM after extra time.",
    "HEADLINE": "NATION LEADER VISITS NATION|EVENT_SHORT kills KILLED in NATION|NATION and NATION TALK|"
    "LEADER of NATION RESIGNS|Police ARREST suspect in EVENT_SHORT|Protesters MARCH in NATION|NATION ACTS_ON|"
    "Stocks MOVE on DAY|KILLED dead in NATION EVENT_SHORT|FIRM to ACT_FIRM|NATION court OUTCOME former MINISTER|"
    "Oil prices MOVE as NATION ACTS_ON|TEAM beat TEAM in final|NATION votes for new MINISTER|EVENT_SHORT hits NATION",
    "NATION": "China|Russia|India|Iran|Iraq|Syria|Egypt|Israel|France|Germany|Japan|Turkey|Ukraine|Pakistan|Mexico|"
    "Brazil|South Korea|North Korea|Afghanistan|Britain|Spain|Italy|Greece|Nigeria|Kenya|Libya|Cuba|Canada|Australia|"
    "Poland|Thailand|Indonesia|the Philippines|Venezuela|Lebanon|Yemen|South Africa|Sudan|Bangladesh|Vietnam|"
    "the United States",
    "LEADER": "president|prime minister|foreign minister|king|opposition leader|defense minister|pope",
    "MINISTER": "president|prime minister|minister|general|mayor|banker|police chief|governor",
    "DAY": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "KILLED": "two|three|five|seven|ten|12|15|20|at least 30|more than 40|dozens of",
    "VISITED": "visited|arrived in|criticized|threatened|thanked|met the president of|called for talks with|accused",
    "VISITS": "visits|arrives in|criticizes|threatens|meets leaders of|warns|thanks|accuses",
    "ACT": "hold elections|withdraw its troops|cut taxes|close its border|join the talks|raise interest rates|"
    "test a missile|release the prisoners|reject the plan|accept the deal|expel the ambassador|build a nuclear plant",
    "ACTED": "declared an emergency|sent in the army|promised help|resigned|closed the schools|blamed the rebels",
    "ACTS_ON": "holds elections|withdraws troops|cuts taxes|closes border|rejects plan|accepts deal|tests missile|"
    "frees prisoners|bans protests|approves budget|seeks new talks|raises rates|signs treaty|sends troops",
    "TALK": "sign trade deal|resume talks|trade accusations|agree on border|exchange prisoners|clash at border",
    "RESIGNS": "resigns|wins election|dies at 80|denies charges|calls for calm|injured in crash|meets protesters",
    "ARREST": "arrest|release|question|charge|hunt",
    "MARCH": "march|clash with police|demand elections|storm parliament|return to the streets",
    "MOVE": "rise|fall|rise sharply|fall sharply|close higher|close lower|hold steady",
    "OUTCOME": "jailed|acquitted|sentenced|freed|convicted",
    "ENDED": "ended without agreement|began|collapsed|were postponed|led to an agreement|will resume",
    "EVENT": "a car bomb exploded|an earthquake struck|a bus crashed|a plane crashed|a building collapsed|"
    "a ferry sank|a gunman opened fire|a fire broke out|floods swept a village|a train derailed|"
    "a storm hit the coast|a bomb went off",
    "EVENT_SHORT": "bomb|earthquake|bus crash|plane crash|building collapse|ferry accident|shooting|fire|flood|"
    "storm|train crash|suicide attack|air strike|mine blast|landslide",
    "FIRM": "bank|airline|car maker|software company|oil company|drug maker|phone company|newspaper|retailer|"
    "chip maker",
    "ACT_FIRM": "cut 500 jobs|buy a rival|open a new plant|raise its prices|pay a fine|sell its stores|recall cars|"
    "launch a new phone|close two factories|hire more workers|appeal the ruling|replace its chief executive",
    "PERCENT": "2|3|5|7|10|12|15|20|25|40",
    "QUARTER": "first|second|third|fourth",
    "INDEX": "Dow Jones industrial average|Nasdaq|stock index|broader market|Standard & Poor's 500",
    "FOODS": "coffee|red wine|exercise|vitamin D|chocolate|sugar|smoking|green tea|lack of sleep|a vegetarian diet",
    "DISEASE_EFFECT": "lower the risk of DISEASE|raise the risk of DISEASE|help people with DISEASE|cause DISEASE",
    "DISEASE": "heart disease|cancer|diabetes|stroke|depression|asthma|obesity|high blood pressure|back pain",
    "TEAM": "Lions|Tigers|Giants|Eagles|Bears|Reds|national team|home team|champions|visitors",
    # Questions and answers.
    "ASK": "How do I DO_ASK?|How can I DO_ASK?|What is the best way to DO_ASK?|Is it safe to DO_ASK?|"
    "Should I DO_ASK?|Can you DO_ASK?|Why can't I DO_ASK?|Do I need a license to DO_ASK?|"
    "How long does it take to DO_ASK?|Where can I learn to DO_ASK?|What do I need to DO_ASK?|Who invented TOPIC?|"
    "What is TOPIC?|What causes DISEASE?|How does TOPIC work?|When was TOPIC invented?|"
    "What is the capital of NATION?|How many people live in NATION?|What are the symptoms of DISEASE?|"
    "How is DISEASE treated?|Who is the LEADER of NATION?|Where is NATION?",
    "DO_ASK": "remove a stain from a shirt|cook rice|grow tomatoes|train a puppy|fix a flat tire|learn a language|"
    "lose weight|paint a wall|clean a keyboard|store potatoes|sharpen a knife|write a cover letter|find a job|"
    "sell a car|repair a leaking tap|keep food fresh|travel with a cat|freeze cooked meat|replace a light switch|"
    "sleep better|invest money|publish a book|apply for a visa|install a printer|recover a deleted file|make bread|"
    "boil eggs|cut a hole in glass|charge a battery|take pictures at night|teach a child to swim|start a business|"
    "pay less tax|get rid of ants|sync my phone|change my password|merge two tables|sort a list|brew beer|dry herbs|"
    "reheat pizza|wash a wool sweater|bake without an oven|cancel an order|return a gift|book a flight|rent a flat|"
    "quit smoking",
    "TOPIC": "the telephone|a vaccine|gravity|a black hole|the internet|photosynthesis|inflation|a neural network|"
    "the steam engine|a solar panel|the stock market|DNA|electricity|the printing press|radar|a refrigerator|"
    "a credit card|a volcano|the moon landing|blood pressure|global warming|a diesel engine|a prime number",
    "OPINION": "I think it is SORT to DO_ASK.|You can always DO_ASK.|I would not DO_ASK.|"
    "It depends on what you want.|I have no idea how to DO_ASK.|In my opinion it is SORT to DO_ASK.|"
    "It is SORT, but you should DO_ASK first.|I tried to DO_ASK and it worked.|"
    "I tried to DO_ASK but it did not work.|You don't have to DO_ASK.|This ITEM is SORT.|"
    "The ITEM was SORT and the staff was FRIENDLY.|I really like this ITEM.|I hate this ITEM.|"
    "My ITEM arrived broken.|The ITEM stopped working after a week.|Please send me a new ITEM.|Where is my ITEM?",
    "SORT": "a good idea|a bad idea|fine|dangerous|easy|hard|cheap|expensive|worth it|useless|great|terrible|important",
    "ITEM": "phone|hotel|camera|book|restaurant|movie|laptop|jacket|headset|vacuum cleaner|coffee machine|service|"
    "order",
    "FRIENDLY": "friendly|rude|helpful|slow",
    "FACT": "NATION is a country in REGION.|The capital of NATION is a large city.|TOPIC was a great discovery.|"
    "FOODS can DISEASE_EFFECT.|Doctors treat DISEASE with drugs and rest.|People in NATION often eat FOOD.|"
    "The BEAST is an animal that lives in REGION.|Many people suffer from DISEASE.|Children learn to DO at school.",
    "REGION": "Europe|Asia|Africa|South America|the north|the mountains|the desert|warm countries|forests",
    "ADVICE": "To DO_ASK, start early and be patient.|If you want to DO_ASK, ask an expert.|Never DO_ASK alone.|"
    "Before you DO_ASK, read the instructions.|Use cold water to DO_ASK.|"
    "The easiest way to DO_ASK is to watch others.",
}

_GRAMMAR = Grammar.parse(RULES)


def generate(count: int, generator: random.Random) -> Iterator[str]:
    """`count` sentences, with some duplicates."""
    for _ in range(count):
        yield capitalize(_GRAMMAR.expand("TEXT", generator))
