//! nginx as an upstream.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use crate::process::Process;
use crate::site::Site;

/// A running nginx that serves the files of `site.path("www")`.
#[derive(Debug)]
pub struct Nginx {
    _process: Process,
    address: SocketAddr,
    http2: SocketAddr,
}

impl Nginx {
    /// Writes `files` (path below the root, content) and starts nginx.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(site: &Site, files: &[(&str, &[u8])]) -> Self {
        let root = site.path("www");
        for (name, content) in files {
            let file = root.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        let (address, http2) = (site.at(25090), site.at(25091));
        let directory = site.path("");
        let directory = directory.display();
        let configuration = format!(
            "daemon off; master_process off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr;\n\
             events {{ worker_connections 256; }}\n\
             http {{\n\
               access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n\
               fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;\n\
               scgi_temp_path {directory}/scgi; client_max_body_size 0;\n\
               server {{ listen {address}; listen {http2} http2; root {root}; }}\n\
             }}\n",
            root = root.display(),
        );
        let file = site.path("nginx.conf");
        fs::write(&file, configuration).unwrap();
        let mut command = Command::new("nginx");
        // On Debian it is where only root looks by default.
        command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
        command.args(["-e", "stderr", "-c"]).arg(file);
        let mut process = Process::start(&site.path(""), "nginx", command);
        process.until("its listener", || TcpStream::connect(address).ok().map(drop));
        Self { _process: process, address, http2 }
    }

    /// Where it speaks HTTP/2 with prior knowledge.
    pub fn http2(&self) -> SocketAddr {
        self.http2
    }

    /// Where it speaks HTTP/1.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
