# %% [markdown]
# # index_and_contrast

# %%
print(1)
