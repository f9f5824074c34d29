"""What `filmloop site check` asks Globus: who we are there, both collections, the endpoint. Nothing is changed by asking."""
