"""The paper's tables: its published figures, and a reproduction of them beside."""
