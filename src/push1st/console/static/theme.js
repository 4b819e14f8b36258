// Applies the remembered theme before the first paint, so this script is not a module. localStorage holds nothing else.
(function () {
  try {
    const theme = localStorage.getItem("push1st-theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // The browser forbids storage: the theme follows the system.
  }
})();
