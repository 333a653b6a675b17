//! swiotlb
