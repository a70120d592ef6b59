from skyrl_env_reverse import SPLITS, make_env, rows


def test_the_share_of_letters_in_place_is_rewarded():
    env = make_env("reverse", {"reward_spec": {"ground_truth": "tac"}})
    assert env.step("tic")["reward"] == 2 / 3  # t and c of "tac"
    assert env.step("tacos")["reward"] == 3 / 5  # three right, two too many
    assert env.get_metrics() == {"exact_match": 0.0}
    assert env.step(" tac\n")["reward"] == 1.0
    assert env.get_metrics() == {"exact_match": 1.0}


def test_held_out_words_are_not_trained_on():
    prompts = [row["prompt"][0]["content"] for split in SPLITS for row in rows(split)]
    assert len(set(prompts)) == len(prompts) == 500
