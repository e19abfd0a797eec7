# %% [markdown]
# # explain_a_pair

# %%
print(1)
