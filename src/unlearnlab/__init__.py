"""unlearnlab"""
