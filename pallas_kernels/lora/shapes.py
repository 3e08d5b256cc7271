def check_lora(*a): pass
def check_embedding_lora(*a): pass
