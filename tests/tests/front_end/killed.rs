//! Back ends in a process of their own that are killed under load.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use devices::virtio::DeviceType;
use tests::Stand;
use tests::back_end::in_front;
use tests::stand::eventually;
use virtio_drivers::device::blk::RespStatus;
use vmm::demo::guest::{Pattern, SECTOR};

use super::every;

const IMAGE: usize = 8 << 20;
/// Bytes of a request.
const REQUEST: usize = 32 << 10;

/// `xen-dm vhost-user` with a disk.
struct Program {
    socket: PathBuf,
    image: PathBuf,
    child: Child,
}

impl Program {
    fn start(socket: &Path, image: &Path) -> Program {
        Program {
            socket: socket.to_owned(),
            image: image.to_owned(),
            child: spawn(socket, image),
        }
    }

    /// Kills it as it stands, and has another one take its place.
    fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(&self.socket, &self.image);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(socket: &Path, image: &Path) -> Child {
    let child = Command::new(env!("CARGO_BIN_EXE_served"))
        .arg("vhost-user")
        .arg("--socket")
        .arg(socket)
        .arg("--device")
        .arg(format!("blk,path={}", image.display()))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it listens", || UnixStream::connect(socket).is_ok());
    child
}

#[test]
fn a_disk_whose_back_end_is_killed_five_times_loses_nothing_and_shows_no_error() {
    every(|way| {
        let stand = Stand::new();
        let image = stand.path("image");
        File::create_new(&image)
            .unwrap()
            .set_len(IMAGE as u64)
            .unwrap();
        let socket = stand.path("socket");
        let mut program = Program::start(&socket, &image);
        let device = in_front(way.config(&socket, DeviceType::BLOCK.0));
        let place = stand.add(0, way.addresses, device);
        let mut driver = stand.drive(&place);
        let expected = Pattern::new(7).bytes(IMAGE);

        for (round, part) in expected.chunks(IMAGE / 5 / REQUEST * REQUEST).enumerate() {
            let start = round * (IMAGE / 5 / REQUEST * REQUEST);
            for (number, data) in part.chunks(REQUEST).enumerate() {
                let sector = (start + number * REQUEST) / SECTOR;
                driver.write(sector, data.to_vec()).unwrap();
                if number % 8 == 7 {
                    // with the last of them in flight
                    let is_middle = number == 15;
                    if is_middle {
                        program.kill_and_restart();
                    }
                    for outcome in driver.drain().unwrap() {
                        assert_eq!(outcome.status, RespStatus::OK);
                    }
                }
            }
            for outcome in driver.drain().unwrap() {
                assert_eq!(outcome.status, RespStatus::OK);
            }
        }
        driver.flush().unwrap();
        let mut read = Vec::new();
        for at in (0..IMAGE).step_by(REQUEST) {
            driver.read(at / SECTOR, REQUEST).unwrap();
            read.extend(driver.drain().unwrap().remove(0).data);
        }
        drop(driver);

        assert!(read == expected, "what is read is not what was written");
        assert!(fs::read(&image).unwrap() == expected);
        let stats = stand.guest().snapshot().devices.remove(0);
        let lost = stats.statistics.iter().find(|(name, _)| *name == "lost");
        assert!(lost.unwrap().1 >= 5, "{lost:?}");
        stand.finish();
    });
}
