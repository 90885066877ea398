"""Reading: the only part that knows SpatialData, AnnData and WSIData; slides with plain arrays come out."""
