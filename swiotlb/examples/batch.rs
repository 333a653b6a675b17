//! A batch of requests on its one way, from the guest's ranges to what may be
//! shown to the guest: with a consumer that pins pages, so that all data goes
//! through the queue's pool.
//!
//! `cargo run -p swiotlb --example batch`
#![allow(clippy::indexing_slicing)] // arrays of known lengths

use std::sync::Arc;

use swiotlb::{
    Access, Base, Dma, Fault, GrantPolicy, Job, Keep, Kind, Need, PoolMemory, Range, RingMapping,
    Segment, Segments, Settings, Translation,
};

/// A guest's RAM as one window, which the kernel cannot pin.
struct Ram(Arc<PoolMemory>);

impl Ram {
    fn missing(range: Range) -> Fault {
        Fault::NoTranslation {
            address: range.address(),
            frame: range.address() / swiotlb::PAGE_SIZE,
        }
    }
}

impl Translation for Ram {
    fn translate(
        &mut self,
        range: Range,
        _access: Access,
        out: &mut Segments,
    ) -> Result<Keep, Fault> {
        let slice = self.0.slice(range.address(), u64::from(range.len()));
        out.push(Segment::of(&slice.ok_or_else(|| Ram::missing(range))?));
        Ok(self.0.clone())
    }

    fn map_ring(&mut self, range: Range, _access: Access) -> Result<RingMapping, Fault> {
        Err(Ram::missing(range)) // there is no ring here
    }

    fn pinnable(&self) -> bool {
        false
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ram = Arc::new(PoolMemory::anonymous(1 << 20, Base::At(0))?);
    let settings = Settings {
        options: "128".parse()?, // one segment: 256 KiB
        ..Settings::default()
    };
    let source = Box::new(Ram(Arc::clone(&ram)));
    let mut dma = Dma::new(Kind::Translated, Some(source), None, Arc::default())
        .with_pool(settings, Arc::new(GrantPolicy::default()));
    let need = Need {
        scatter: true,
        pinned: true,
        limit: None,
        align: 512,
    };

    // a request in two pieces, and one whose memory is not there
    let jobs = [
        Job {
            token: "good",
            ranges: [
                (Range::new(0x1003, 700)?, Access::Write),
                (Range::new(0x8001, 324)?, Access::Write),
            ]
            .into_iter()
            .collect(),
        },
        Job {
            token: "bad",
            ranges: [(Range::new(1 << 30, 512)?, Access::Write)]
                .into_iter()
                .collect(),
        },
    ];
    let mut completed = Vec::new();
    for mapped in dma.map(jobs, need) {
        match mapped {
            Ok(mapped) => {
                // the engine's part: it has the memory until it completes
                let mut flight = mapped.submit();
                println!(
                    "{}: {} aligned piece(s)",
                    flight.token(),
                    flight.segments().len()
                );
                flight.write(&[7; 1024]);
                completed.push(flight);
            }
            Err(rejected) => {
                let (done, fault) = dma.reject(rejected);
                println!("{}: {fault}", done.into_token());
            }
        }
    }
    for done in dma.finish(&mut completed) {
        println!("{}: may be shown to the guest", done.into_token());
    }
    let mut byte = [0u8; 2];
    ram.slice(0x8144, 2).ok_or("inside")?.copy_to(&mut byte[..]);
    println!("its last byte is {}, the next one {}", byte[0], byte[1]);
    let counted = dma.counters().snapshot();
    println!(
        "{} ranges bounced ({} because they cannot be pinned), {} requests refused",
        counted.bounced, counted.bounced_pinned, counted.rejected
    );
    Ok(())
}
